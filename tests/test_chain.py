"""A chain is checked as a whole before its first stage runs."""

import pytest
from omegaconf import OmegaConf

from conftest import composed
from unitsphere.cli import chain
from unitsphere.errors import UsageError
from unitsphere.runs import Run


def test_a_chain_whose_last_stage_does_not_fit_runs_nothing(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "stages:\n  first: [loss=mlm, select=last]\n"
        "  last: ['init={first}', preparation=mined, 'preparation.mined.path={first}/x.jsonl']\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"stage last: .*preparation.mined"):
        chain.begin(str(file), ["preparation=exact_duplicates", f"outputs={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


def test_a_preparation_for_all_stages_stands_before_what_was_mined(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "check", lambda _: None)
    typed = ["data=docstrings", "preparation=[exact_duplicates,whitespace]", "seed=2"]
    folder = chain.begin("domain_adaptation", [*typed, f"outputs={tmp_path}/out", "hard.preparation.mined.count=3"])
    stages = OmegaConf.to_container(OmegaConf.load(folder / "chain.yaml"))
    _, verb, *hard = chain.command("hard", stages["hard"], folder, {s: tmp_path / s for s in stages})[2:]
    steps = composed(*hard).preparation
    assert verb == "train" and list(steps) == ["exact_duplicates", "whitespace", "mined"]
    assert steps.mined.path == f"{tmp_path}/negatives/negatives.jsonl" and steps.mined.count == 3
    _, verb, *mine = chain.command("negatives", stages["negatives"], folder, {s: tmp_path / s for s in stages})[2:]
    assert verb == "mine" and list(composed(*mine, root="mine").preparation) == ["exact_duplicates", "whitespace"]


def test_a_stage_that_says_what_its_model_brings_is_refused_before_the_first_runs(tmp_path):
    with pytest.raises(UsageError, match="stage hard: pooling=cls: with init= the model brings"):
        chain.begin("domain_adaptation", ["data=docstrings", f"outputs={tmp_path}/out", "hard.pooling=cls"])
    assert not (tmp_path / "out").exists()


def test_a_model_for_all_stages_begins_the_first_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "check", lambda _: None)
    typed = ["encoder=hub", "encoder.path=/models/x", "pooling=cls", "init=outputs/run", "data=docstrings"]
    folder = chain.begin("domain_adaptation", [*typed, f"outputs={tmp_path}/out", "hard.encoder.dropout=0"])
    stages = OmegaConf.to_container(OmegaConf.load(folder / "chain.yaml"))
    assert stages["mlm"][3:] == typed
    assert stages["contrastive"] == [
        "loss=infonce",
        "encoder.path={mlm}",
        "encoder=hub",
        "pooling=cls",
        "data=docstrings",
    ]
    kept = [override for override in stages["hard"] if not override.startswith("+preparation")]
    assert kept == ["loss=infonce", "init={contrastive}", "encoder=hub", "data=docstrings", "encoder.dropout=0"]


def test_a_chain_in_any_folder_is_resumed(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "a (1), 用户" / "only", "s1")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "last.ckpt").touch()
    (run.folder / "config.yaml").touch()
    run.note(status="interrupted")
    lines = []
    monkeypatch.setattr(chain.subprocess, "run", lambda line: lines.append(line) or run.note(status="done") or Ended())
    chain.carry_out(tmp_path / "a (1), 用户", {"only": ["loss=mlm"]})
    (typed,) = lines[0][4:]
    assert composed(typed).resume == str(run.folder)


class Ended:
    returncode = 0


@pytest.mark.parametrize("place", ["用户", "a (1), b", "it's [x]~#&=", "plain"])
def test_a_stage_may_lie_in_any_folder(tmp_path, place):
    folder = tmp_path / place
    stages = {"mlm": ["loss=mlm"], "last": ["loss=infonce", "init={mlm}", "encoder=hub"]}
    made = chain.command("last", stages["last"], folder, {"mlm": folder / "mlm" / "s1"})
    config = composed(*made[4:-1])
    assert (config.outputs, config.init) == (str(folder), str(folder / "mlm" / "s1"))
