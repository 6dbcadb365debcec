"""Weights & Biases without its server: what a run has written, and a sweep file expanded and run."""

import json
from pathlib import Path

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from conftest import command
from unitsphere.cli.train import main, resume
from unitsphere.cli.wandb import commands
from unitsphere.errors import UsageError
from unitsphere.runs import Run

SWEEPS = Path(__file__).parents[1] / "sweeps" / "wandb"


def records(file: Path) -> list[Record]:
    """What a .wandb file holds: a log of LevelDB's kind, blocks of 32 KiB with records of (crc, length, type, bytes)."""
    data, found, whole = file.read_bytes(), [], b""
    at = 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or last
            found.append(Record.FromString(whole))
            whole = b""
    return found


def written(folder: Path) -> dict:
    """Run, config, last summary, all of the history, and files of one offline run."""
    (file,) = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    found = records(file)
    run = next(r.run for r in found if r.HasField("run"))
    config, summary, history = {}, {}, []
    for r in found:
        for part in (r.run.config, r.config):
            config |= {i.key: json.loads(i.value_json) for i in part.update if i.key}
        summary |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.summary.update}
        if r.history.item:
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item})
    files = [p.name for p in (file.parent / "files").rglob("*") if p.is_file()]
    return {"run": run, "config": config, "summary": summary, "history": history, "files": files}


@pytest.fixture
def rows(tmp_path):
    lines = [{"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}"} for i in range(80)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def overrides(rows, *more):
    return [
        "encoder=tiny", "data=pairs", f"data.path={rows}", "data.held_out=8", "data.batch_size=16", "trainer.max_steps=4",
        "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every_n_steps=1", "callbacks.selection.every=2",
        f"outputs={rows.parent / 'out'}", "logger=wandb", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_logs_each_cell_as_a_run_of_one_group(rows, tmp_path):
    sweep = tmp_path / "out" / "sweep"
    command("train", "-m", f"hydra.sweep.dir={sweep}", "loss=simcse,infonce", *overrides(rows))
    cells = [Run(file.parent) for file in sweep.glob("*/run.json")]
    found = {run.info["choices"]["loss"]: (run, written(run.folder)) for run in cells}
    assert set(found) == {"simcse", "infonce"}
    assert len({theirs["run"].run_id for _, theirs in found.values()}) == 2
    for loss, (run, theirs) in found.items():
        assert theirs["run"].run_group == "out/sweep" and theirs["run"].run_id == run.info["wandb_id"]
        assert {f"loss={loss}", "pooling=mean", "encoder=tiny", "out/sweep"} <= set(theirs["run"].tags)
        assert theirs["config"]["optim"]["lr"] == run.config.optim.lr
        steps = [line["trainer/global_step"] for line in theirs["history"] if "train/loss" in line]
        assert len(steps) == 4
        assert len([line for line in theirs["history"] if "dev/pairs/mrr@10" in line]) == 3  # steps 0, 2 and 4
        for name, value in run.metrics.items():
            assert theirs["summary"][name] == pytest.approx(value), name
        last = theirs["history"][-1]
        assert (last["scores/_type"], last["report/_type"]) == ("table-file", "html-file")
        assert last["pictures/cosines-pairs-after/_type"] == "image-file" and "worst/pairs/nrows" in last
        kinds = {Path(name).suffix for name in theirs["files"]}
        assert {".json", ".html", ".png"} <= kinds


@pytest.mark.slow
def test_a_failed_run_ends_theirs_and_a_resumed_one_is_the_same(rows, tmp_path, monkeypatch):
    import wandb

    from unitsphere.training.selection import Selection

    whole = Selection.on_train_batch_end

    def cut(self, trainer, *args, **kwargs):
        whole(self, trainer, *args, **kwargs)
        if trainer.global_step == 2:
            raise RuntimeError("cut")

    monkeypatch.setattr(Selection, "on_train_batch_end", cut)
    with pytest.raises(RuntimeError, match="cut"):
        main(overrides(rows, "callbacks.selection.save_every=1"))
    assert wandb.run is None
    (file,) = (tmp_path / "out").glob("*/s1_*/run.json")
    first = Run(file.parent).info["wandb_id"]
    monkeypatch.setattr(Selection, "on_train_batch_end", whole)
    resume(str(file.parent))
    assert wandb.run is None and Run(file.parent).info["wandb_id"] == first
    assert all(first in f.name for f in file.parent.glob("wandb/offline-run-*/*.wandb"))


def test_the_grid_is_that_of_the_file():
    lines = commands(SWEEPS / "pooling_by_loss.yaml")
    assert len(lines) == 24 and len({tuple(line) for line in lines}) == 24
    assert lines[0] == ["python", "train.py", "loss=simcse", "pooling=cls", "seed=1", "logger=wandb"]
    assert lines[1][-2] == "seed=2"


def test_a_long_value_is_whole(tmp_path):
    prompt = "Represent this sentence, " * 9
    node = {"method": "grid", "parameters": {"embedder.prompts.query": {"value": prompt}, "x": {"value": [*range(60)]}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(node))
    ((*_, query, numbers),) = commands(tmp_path / "mine.yaml")
    assert yaml.safe_load(query.partition("=")[2]) == prompt
    assert yaml.safe_load(numbers.partition("=")[2]) == [*range(60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayes"}, "only `method: grid`"),
        ({"parameters": {"loss": {"min": 1}}}, "parameters.loss is .*in a grid it has"),
        ({"command": ["${args_json}"]}, r"command has \$\{args_json\}"),
    ],
)
def test_a_file_that_is_not_run_here(tmp_path, change, message):
    config = yaml.safe_load((SWEEPS / "pooling_by_loss.yaml").read_text()) | change
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UsageError, match=message):
        commands(tmp_path / "s.yaml")


@pytest.mark.slow
def test_a_grid_is_run_offline_and_a_command_that_fails_stops_no_other(rows, tmp_path):
    config = {
        "program": str(SWEEPS.parents[1] / "train.py"),
        "method": "grid",
        "parameters": {"loss": {"values": ["nothing", "simcse", "infonce"]}, "optim.lr": {"value": 0.001}},
        "command": ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    printed = command("wandb", tmp_path / "s.yaml", "print=true", "seed=7").stdout.splitlines()
    assert len(printed) == 3 and printed[1].endswith("train.py loss=simcse optim.lr=0.001 seed=7")
    done = command("wandb", tmp_path / "s.yaml", *overrides(rows), "trainer.max_steps=1", check=False)
    assert done.returncode == 2 and "1 of 3 commands failed" in done.stderr and "loss=nothing" in done.stderr
    runs = [Run(file.parent) for file in (tmp_path / "out").glob("*/*/run.json")]
    assert {run.info["choices"]["loss"] for run in runs} == {"simcse", "infonce"}
    for run in runs:
        theirs = written(run.folder)
        assert theirs["run"].run_group == "s" and theirs["config"]["optim"]["lr"] == 0.001
        assert theirs["summary"]["steps"] == 1
