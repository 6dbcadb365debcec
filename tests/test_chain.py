"""A chain is checked as a whole before its first stage runs."""

import pytest
from omegaconf import OmegaConf

from conftest import composed
from unitsphere.cli import chain
from unitsphere.errors import UsageError


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


@pytest.mark.parametrize("place", ["用户", "a (1), b", "it's [x]~#&=", "plain"])
def test_a_stage_may_lie_in_any_folder(tmp_path, place):
    folder = tmp_path / place
    stages = {"mlm": ["loss=mlm"], "last": ["loss=infonce", "init={mlm}", "encoder=hub"]}
    made = chain.command("last", stages["last"], folder, {"mlm": folder / "mlm" / "s1"})
    config = composed(*made[4:-1])
    assert (config.outputs, config.init) == (str(folder), str(folder / "mlm" / "s1"))
