"""Sweeps: a cell that fails stops no other, one that is done is not run again, a killed sweep goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import command, composed
from unitsphere.cli.sweep import again, state
from unitsphere.report.comparability import differing
from unitsphere.report.records import Record
from unitsphere.runs import cell


@pytest.fixture
def line(tmp_path):
    rows = [{"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}"} for i in range(80)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "-m", "encoder=tiny", "data=pairs", f"data.path={file}", "data.held_out=8", "data.batch_size=16", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "trainer.threads=1", f"hydra.sweep.dir={tmp_path / 'sweep'}", "eval=retrieval",
    ]  # fmt: skip


def cells(folder):
    return {" ".join(t for t in typed(run) if t.startswith(("loss=", "seed="))): run for run in state(folder).cells}


def typed(run):
    return [line.removeprefix("- ") for line in (run.folder / "overrides.yaml").read_text().splitlines()]


@pytest.mark.slow
def test_a_cell_that_fails_stops_no_other_and_is_all_that_a_resumed_sweep_runs(line, tmp_path):
    done = command("train", *line, "loss=supcon,infonce,simcse", "seed=1", check=False)
    assert done.returncode == 1 and "this cell failed: encoder=tiny" in done.stdout
    assert "this loss reads anchor, label" in done.stdout and "2 of 3 cells done, 1 failed" in done.stdout
    folder = tmp_path / "sweep"
    assert {k: r.info["status"] for k, r in cells(folder).items()} == {
        "loss=supcon seed=1": "failed", "loss=infonce seed=1": "done", "loss=simcse seed=1": "done",
    }  # fmt: skip
    started = {k: r.info["started"] for k, r in cells(folder).items()}
    done = command("train", f"resume={folder}", check=False)
    assert done.returncode == 1 and done.stdout.count("done before") == 2
    assert [k for k, r in cells(folder).items() if r.info["started"] != started[k]] == ["loss=supcon seed=1"]
    shown = command("sweep", str(folder)).stdout
    assert "2 of 3 cells done, 1 failed" in shown and "loss=simcse" in shown


@pytest.mark.slow
def test_a_cell_that_another_process_runs_is_left_alone(line, tmp_path):
    command("train", *line, "loss=infonce", "seed=1")
    (run,) = state(tmp_path / "sweep").cells
    with run.lock():
        run.note(status="running")
        done = command("train", f"resume={tmp_path / 'sweep'}", check=False)
    assert "another process is at it" in done.stdout and run.info["status"] == "killed"  # nothing was written


@pytest.mark.slow
def test_equal_cells_are_run_once(line, tmp_path):
    done = command("train", *line, "loss=infonce", "seed=1,1", "name=a")
    (run,) = state(tmp_path / "sweep").cells
    assert done.stdout.count("done before") == 1
    done = command("train", f"resume={run.folder}", check=False)  # a cell is a run: this is no sweep to go on with
    assert done.returncode == 2 and "this run is done" in done.stderr


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_numbers(line, tmp_path):
    settings = [*line, "loss=infonce", "seed=1,2,3", "trainer.max_steps=30", "callbacks.selection.save_every=2"]
    process = subprocess.Popen([sys.executable, "-m", "unitsphere", "train", *settings], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "sweep").glob("*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state(tmp_path / "sweep").count("killed") == 1
    command("train", f"resume={tmp_path / 'sweep'}")
    settings[settings.index(f"hydra.sweep.dir={tmp_path / 'sweep'}")] = f"hydra.sweep.dir={tmp_path / 'whole'}"
    command("train", *settings)
    one, other = (cells(tmp_path / name) for name in ("sweep", "whole"))
    assert len(one) == 3 and {k: r.metrics for k, r in one.items()} == {k: r.metrics for k, r in other.items()}
    assert {r.folder.name for r in one.values()} == {r.folder.name for r in other.values()}


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one(line, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib")
    command("train", *line, "loss=infonce,simcse", "seed=1,2")
    settings = [a for a in line if not a.startswith(("hydra.sweep.dir", "trainer.threads"))]
    command(
        "train", *settings, "loss=infonce,simcse", "seed=1,2", "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={os.cpu_count()}", f"hydra.sweep.dir={tmp_path / 'parallel'}",
    )  # fmt: skip
    one, several = (cells(tmp_path / name) for name in ("sweep", "parallel"))
    assert {r.config.trainer.threads for r in several.values()} == {1}  # the cores are divided
    assert len(several) == 4 and {k: r.metrics for k, r in one.items()} == {k: r.metrics for k, r in several.items()}


@pytest.mark.slow
def test_a_sweep_of_a_file_is_resumed_with_its_file(line, tmp_path):
    conf = tmp_path / "mine"
    conf.mkdir()
    (conf / "losses.yaml").write_text(
        "# @package _global_\ndefaults: [train, _self_]\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {loss: 'infonce,simcse', seed: '1,2'}}}\n"
    )
    command("train", "-cd", str(conf), "-cn", "losses", *line[1:], "trainer.max_steps=1")
    now = state(tmp_path / "sweep")
    assert now.total == 4 and now.count("done") == 4 and now.seconds_left is None
    back = again(tmp_path / "sweep")
    assert back[:4] == ["-cn", "losses", "-cd", str(conf)] and "trainer.max_steps=1" in back
    done = command("train", f"resume={tmp_path / 'sweep'}")
    assert done.stdout.count("done before") == 4


@pytest.mark.slow
def test_an_estimate_comes_from_the_cells_that_are_done(tmp_path, line):
    command("train", *line, "loss=infonce", "seed=1,2")
    first, second = state(tmp_path / "sweep").cells
    first.note(wall_seconds=60)
    shutil.rmtree(second.folder)
    now = state(tmp_path / "sweep")
    assert now.seconds_left == 60 and str(now).startswith("1 of 2 cells done, the rest in about 1 min, at ")
    with first.lock():
        first.note(status="running")
        assert state(tmp_path / "sweep").statuses == ("running",)
    first.note(status="failed")
    assert str(state(tmp_path / "sweep")) == "0 of 2 cells done, 1 failed"


@pytest.mark.slow
def test_a_sample_of_the_cells_is_reproduced(line, tmp_path):
    command("train", *line, "loss=infonce,simcse", "seed=1,2")
    done = command("reproduce", tmp_path / "sweep", "sample=3", f"outputs={tmp_path / 'again'}")
    assert "3 of 3 runs reproduced" in done.stdout and done.stdout.count("0 differ (to the last digit demanded)") == 3
    cell = state(tmp_path / "sweep").cells[0]
    cell.add_metrics({"test/pairs/mrr@10": 0.123456})
    done = command("reproduce", tmp_path / "sweep", f"outputs={tmp_path / 'again'}", check=False)
    assert done.returncode == 1 and "3 of 4 runs reproduced" in done.stdout
    for sample, message in (("sample=5", "1 to 4, the cells that are done"), ("sample=many", "1 to 4")):
        assert message in command("reproduce", tmp_path / "sweep", sample, check=False).stderr
    assert "is for sweeps" in command("reproduce", cell.folder, "sample=1", check=False).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere is not a sweep's folder"), ([".", "watch=2"], "watch=2 is not understood")],
)
def test_bad_usage_is_one_message(tmp_path, arguments, message):
    done = command("sweep", *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_size_of_the_vector_cache_is_no_setting_of_a_model(tmp_path):
    one, two = (composed("encoder=tiny", "loss=infonce", f"vector_cache={gib}") for gib in (0, 4))
    assert cell(one) == cell(two) != cell(composed("encoder=tiny", "loss=infonce", "seed=7"))
    records = [Record(tmp_path, {}, {"vector_cache": gib, "loss": "infonce"}, {}) for gib in (0, 4)]
    assert differing(records) == []
