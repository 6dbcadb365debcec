"""Cells in several processes (Ray, submitit, one GPU each) and cells that Optuna proposes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import command
from unitsphere.cli.sweep import state
from unitsphere.errors import UsageError

WEIGHT = "loss.hard_negative_weight"


@pytest.fixture
def line(tmp_path):
    rows = [{"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}"} for i in range(80)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "-m", "encoder=tiny", "data=pairs", f"data.path={file}", "data.held_out=8", "data.batch_size=16", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "eval=retrieval", "~callbacks.progress", "callbacks.selection.every=2", "loss=infonce",
    ]  # fmt: skip


def numbers(folder):
    return {run.config.seed: run.metrics for run in state(folder).cells}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "submitit_local"])
def test_a_launcher_gives_the_numbers_of_one_process(line, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher", reason=f"the extra {launcher}")
    command("train", *line, "seed=1,2", "trainer.threads=1", f"hydra.sweep.dir={tmp_path / 'one'}")
    own = [] if launcher == "ray" else ["trainer.threads=1"]  # a cell of Ray has one core unless it asks for more
    command("train", *line, "seed=1,2", *own, f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'several'}")
    assert numbers(tmp_path / "one") == numbers(tmp_path / "several") and len(numbers(tmp_path / "one")) == 2
    one, several = (state(tmp_path / name).cells for name in ("one", "several"))
    assert {run.config.trainer.threads for run in (*one, *several)} == {1}
    if own:  # typed alike: the same cells
        assert {run.folder.name for run in one} == {run.folder.name for run in several}


@pytest.mark.slow
def test_every_process_has_a_gpu_of_its_own(tmp_path):
    code = "from unitsphere.training import gpus; import os; print(gpus.take_one(), os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,7", "UNITSPHERE_CACHE": str(tmp_path)}

    def started():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes)

    first = started()
    assert first.stdout.readline() == "4 4\n"
    second = started()
    assert second.stdout.readline() == "7 7\n"
    assert "all 2 GPUs are taken by other cells; hydra.launcher.n_jobs=2 would fit" in started().communicate()[1]
    first.kill()  # however it ends
    first.wait()
    third = started()
    assert third.stdout.readline() == "4 4\n"
    for process in (second, third):
        process.communicate("\n")
    env["CUDA_VISIBLE_DEVICES"] = "3"
    assert started().communicate("\n")[0] == "None 3\n"


def trials(folder):
    optuna = pytest.importorskip("optuna", reason="the extra optuna")
    from hydra_plugins.unitsphere_optuna import STUDY, storage

    return optuna.load_study(study_name=STUDY, storage=storage(folder)).trials


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("k=a,b", "CategoricalDistribution(choices=('a', 'b'))"),
        ("k=choice(1,2)", "CategoricalDistribution(choices=('1', '2'))"),
        ("k=range(2,9,3)", "IntDistribution(high=8, log=False, low=2, step=3)"),
        ("k=interval(0.5,2)", "FloatDistribution(high=2.0, log=False, low=0.5, step=None)"),
        ("k=tag(log,interval(1e-5,1e-2))", "FloatDistribution(high=0.01, log=True, low=1e-05, step=None)"),
    ],
)
def test_what_is_typed_is_what_optuna_draws_from(typed, expected):
    pytest.importorskip("optuna", reason="the extra optuna")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hydra_plugins.unitsphere_optuna import distribution

    (override,) = OverridesParser.create().parse_overrides([typed])
    assert str(distribution(override)) == expected


@pytest.mark.slow
def test_optuna_gets_what_dev_says(line, tmp_path):
    space = [f"{WEIGHT}=interval(-1.0,1.0)", "optim.lr=tag(log,interval(1e-4,1e-1))", "loss.symmetric=true,false"]
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.trials=3", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = command("train", *line, *sweeper, *space)
    told, runs = trials(tmp_path / "sweep"), state(tmp_path / "sweep").cells
    assert len(told) == len(runs) == 3
    scored = {run.config.loss.hard_negative_weight: run.info["selected"]["value"] for run in runs}
    assert {trial.params[WEIGHT]: trial.value for trial in told} == scored
    for trial in told:
        assert -1 <= trial.params[WEIGHT] <= 1 and 1e-4 <= trial.params["optim.lr"] <= 1e-1
        assert sorted(trial.intermediate_values) == [0, 2]  # the look at the last step is the value
    assert f"best on dev of 3 trials, 0 of them pruned: {max(scored.values()):.4f}" in done.stdout


@pytest.mark.slow
def test_a_trial_that_is_given_up_ends_and_is_not_run_again(line, tmp_path):
    pruner = ["_target_=optuna.pruners.ThresholdPruner", "lower=2.0", "n_startup_trials"]
    typed = [f"{sign}hydra.sweeper.pruner.{key}" for sign, key in zip(("", "+", "~"), pruner, strict=True)]
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.trials=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command("train", *line, *sweeper, *typed, f"{WEIGHT}=interval(-1.0,1.0)")
    assert [trial.state.name for trial in trials(tmp_path / "sweep")] == ["PRUNED", "PRUNED"]
    now = state(tmp_path / "sweep")
    assert now.statuses == ("pruned", "pruned") and "2 pruned" in str(now)
    for run in now.cells:
        assert "worse than" in run.info["error"] and not (run.folder / "model").exists()
    command("train", f"resume={tmp_path / 'sweep'}")
    assert len(trials(tmp_path / "sweep")) == 2


def test_a_machine_without_optuna_says_what_is_missing(monkeypatch):
    from hydra_plugins.unitsphere_optuna import OptunaSweeper

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match="pip install optuna"):
        OptunaSweeper(trials=1, at_once=1, sampler=None, pruner=None).sweep([])


@pytest.mark.slow
def test_a_killed_search_goes_on_with_its_trials(line, tmp_path):
    settings = [*line, "hydra/sweeper=optuna", "hydra.sweeper.trials=3", f"{WEIGHT}=interval(-1.0,1.0)"]
    settings += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_steps=40", "callbacks.selection.save_every=2"]
    process = subprocess.Popen([sys.executable, "-m", "unitsphere", "train", *settings], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "sweep").glob("*/checkpoints/last.ckpt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(tmp_path / "sweep")
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    command("train", f"resume={tmp_path / 'sweep'}")
    after = trials(tmp_path / "sweep")
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert state(tmp_path / "sweep").count("done") == 3
