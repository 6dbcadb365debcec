"""Plans: the cells of a command line, and estimates from past runs, against arithmetic."""

import json
import os

import pytest
from omegaconf import OmegaConf

from conftest import command, composed
from unitsphere.cli.train import settle
from unitsphere.process import processor
from unitsphere.report import costs
from unitsphere.runs import Run


def known(folder, name, config, wall=100.0, training=60.0, memory=2.0, **info):
    """A run that is done, as far as a plan reads it."""
    run = Run.create(folder / name, "s1")
    (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    choices = {"loss": "infonce", "pooling": "mean", "encoder": "tiny"}
    run.note(status="done", choices=choices, processor=processor(), steps=config.trainer.max_steps)
    run.note(wall_seconds=wall, train_seconds=training, peak_memory_gib=memory, **info)
    return run


def config(*more):
    made = composed("encoder=tiny", "loss=infonce", "data=pairs", "data.path=x.jsonl", "data.batch_size=16", *more)
    settle(made)
    return made


CHOICES = {"loss": "infonce", "pooling": "mean", "encoder": "tiny"}


def test_training_is_scaled_by_its_rows_and_the_rest_is_not(tmp_path):
    known(tmp_path, "a", config("trainer.max_steps=10"))
    past = costs.past(tmp_path)
    cost = costs.estimate(config("trainer.max_steps=50", "seed=9"), CHOICES, past)
    assert cost.seconds == pytest.approx(40 + 60 * 5) and cost.memory == 2.0
    assert cost.basis == "a, equal but for seed and steps"
    known(tmp_path / "other", "a", config("trainer.max_steps=10"), wall=50, training=10, train_steps=2)  # resumed at 8
    resumed = costs.past(tmp_path / "other")
    assert costs.estimate(config("trainer.max_steps=50"), CHOICES, resumed).seconds == pytest.approx(40 + 5 * 50)
    twice = costs.estimate(config("trainer.max_steps=10", "data.batch_size=32"), CHOICES, past)
    assert twice.seconds == pytest.approx(40 + 60 * 2) and "1 settings apart" in twice.basis


def test_the_nearest_runs_count_and_only_those_of_this_encoder_and_machine(tmp_path):
    near = config("trainer.max_steps=10", "optim.lr=0.5")
    known(tmp_path, "near", near, wall=80, training=80)
    known(
        tmp_path, "near2", config("trainer.max_steps=10", "optim.lr=0.5", "seed=2"), wall=120, training=120, memory=3.0
    )
    known(tmp_path, "far", config("trainer.max_steps=10", "optim.lr=0.5", "data.max_length=8"), wall=1, training=1)
    known(tmp_path, "elsewhere", near, wall=1).note(processor="another")
    known(tmp_path, "failed", near, wall=1).note(status="failed")
    past = costs.past(tmp_path)
    cost = costs.estimate(near, CHOICES, past)
    assert (cost.seconds, cost.memory, cost.basis) == (100.0, 3.0, "2 runs, equal but for seed and steps")
    other = composed("encoder=hub", "encoder.path=y", "loss=infonce", "data=pairs", "data.path=x.jsonl")
    assert costs.estimate(other, CHOICES, past) is None
    assert costs.past(tmp_path / "nowhere") == []


@pytest.mark.slow
def test_the_verb_names_the_cells_that_a_sweep_makes_and_runs_none(tmp_path, pairs):
    line = ["-m", "loss=simcse,infonce", "seed=1,2,2", "encoder=tiny", "data=pairs", f"data.path={pairs}", "data.held_out=8",
            "trainer.max_steps=1", "trainer.accelerator=cpu", "eval=none", "select=last", f"outputs={tmp_path / 'out'}"]  # fmt: skip
    first = command("plan", *line).stdout
    assert "4 of 4 runs to make; 4 cannot be estimated" in " ".join(first.split())
    assert not (tmp_path / "out").exists()
    sweep = tmp_path / "out" / "s"
    command("train", *line, "loss=infonce", "seed=1", f"hydra.sweep.dir={sweep}")
    (done,) = (file.parent.name for file in sweep.glob("*/run.json"))
    second = command("plan", *line, f"hydra.sweep.dir={sweep}", env={**os.environ, "COLUMNS": "200"}).stdout
    lines = [row for row in second.splitlines() if row.startswith("│")]
    assert len(lines) == 4 and {row.split("│")[1].strip() for row in lines} >= {done}
    assert next(row for row in lines if done in row).split("│")[3].strip() == "done"
    assert "3 of 4 runs to make, about 1 min" in second
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == [done]
    assert json.loads((sweep / done / "run.json").read_text())["train_seconds"] >= 0


def test_bad_arguments_are_one_message():
    done = command("plan", "loss=nothing", check=False)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr
