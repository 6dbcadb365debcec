"""Model cards, read by huggingface_hub and executed; pushing to a folder and to a stand-in for a hub."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from conftest import command
from unitsphere import artefact
from unitsphere.card import card, results
from unitsphere.cli import push
from unitsphere.cli.train import main as train
from unitsphere.errors import UsageError
from unitsphere.runs import Run


def trained(pairs, outputs, *more) -> Run:
    typed = ["encoder=tiny", "loss=infonce", "data=pairs", f"data.path={pairs}", "data.batch_size=16", "seed=3"]
    small = ["trainer.max_steps=2", "trainer.accelerator=cpu", "~callbacks.progress", f"outputs={outputs}"]
    train([*typed, *small, *more])
    (folder,) = (outputs / ("simcse-mean" if "loss=simcse" in more else "infonce-mean")).iterdir()
    return Run.open(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    rows = [{"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}"} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNITSPHERE_CACHE", str(folder / "cache"))
        return trained(folder / "rows.jsonl", folder / "out", "embedder.prompts.query=ask: ")


@pytest.fixture
def run(finished, tmp_path):
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_card_says_what_the_run_folder_says(run):
    text = (run.folder / "model" / "README.md").read_text()
    parsed = ModelCard(text)
    scored = {f"test/{r.dataset_name}/{r.metric_type}": r.metric_value for r in parsed.data.eval_results}
    assert scored == {k: v for k, v in run.metrics.items() if k.startswith("test/") and "geometry" not in k}
    assert {"loss:infonce", "unitsphere"} <= set(
        parsed.data.tags
    ) and parsed.data.library_name == "sentence-transformers"
    assert parsed.data.license is None and "No licence is stated" in text
    for told in (run.info["data"]["train"]["sha256"], "temperature: 0.05", "exact, 100 deep", "(rows.jsonl)"):
        assert told in text
    assert str(Path(run.config.data.path).parent) not in text.split("## Data")[1]  # a local folder is nobody's business
    for name in ("pairs/mrr@10", "pairs/recall@1"):
        before, after = (f"{100 * run.metrics[f'{stage}/{name}']:.2f}" for stage in ("before", "test"))
        assert f"| {name} | {before} | {after} |" in text


def test_the_code_on_the_card_runs(run):
    vectors = []
    for block in blocks((run.folder / "model" / "README.md").read_text()):
        names = {}
        exec(block, names)
        vectors.append(names["vectors"])
    assert len(vectors) == 2
    np.testing.assert_allclose(*vectors, atol=1e-6)
    plain = artefact.load(run.folder).encode(["sort an array"])
    assert np.abs(plain - vectors[0]).max() > 1e-3  # the card's call uses the prompt


def test_scores_stand_under_the_task_that_they_are_of():
    kinds = {"sts": "sts", "mine": "retrieval", "tickets": "classification", "mrpc": "pair classification"}
    kinds |= {"topics": "clustering", "geometry": "geometry", "bitext-en-de": "bitext"}
    names = ["sts/sts12", "sts/avg", "mine/mrr@10", "tickets/accuracy", "mrpc/ap", "topics/ari", "geometry/uniformity"]
    names += ["bitext-en-de/mrr@10", "unheard/of"]
    metrics = {f"test/{name}": 0.5 for name in names} | {"before/mine/mrr@10": 0.4, "steps": 2.0}
    found = results(metrics, {task: {"kind": kind} for task, kind in kinds.items()})
    assert [(one.task_type, one.dataset_name, one.metric_type) for one in found] == [
        ("sentence-similarity", "sts12", "spearman"),
        ("sentence-similarity", "avg", "spearman"),
        ("text-retrieval", "mine", "mrr@10"),
        ("text-classification", "tickets", "accuracy"),
        ("text-classification", "mrpc", "ap"),
    ]


@pytest.mark.slow
def test_a_base_hands_its_licence_down(run, pairs, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(run.folder / "model", base)
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: ours\nlanguage: [en, zh]\nbase_model: some/bert\n---\n# It\n"
    )
    first = trained(pairs, tmp_path / "first", "encoder=hub", f"encoder.path={base}")
    second = trained(pairs, tmp_path / "second", "loss=simcse", f"init={first.folder}")
    for made in (first, second):
        data = ModelCard.load(made.folder / "model" / "README.md").data
        assert (data.license, data.language, data.base_model) == ("other", ["en", "zh"], "some/bert")
        assert data.license_name == "ours"
    text = card(second, license="mit")
    data = ModelCard(text).data
    assert data.license == "mit" and data.to_dict().get("license_name") is None and "Licence: mit." in text


def test_the_default_encoder_is_named_with_its_licence():
    from conftest import composed
    from unitsphere.card import base

    said = base(composed("encoder=minilm"))
    assert said["license"] == "apache-2.0" and said["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_pooling_that_sentence_transformers_lacks(pairs, tmp_path):
    made = trained(pairs, tmp_path / "out", "pooling=attention", "name=infonce-mean", "eval=none", "select=last")
    text = (made.folder / "model" / "README.md").read_text()
    assert len(blocks(text)) == 1 and "Not measured." in text and "the checkpoint is the last." in text
    assert ModelCard(text).data.library_name == "transformers"


@pytest.mark.slow
def test_pushed_to_a_folder(run, tmp_path):
    target = tmp_path / "served" / "mine"
    target.parent.mkdir()
    command("push", run.folder, f"to={target}", "license=mit")
    texts = ["red cat", "old house"]
    np.testing.assert_array_equal(artefact.load(target).encode(texts), artefact.load(run.folder).encode(texts))
    pushed = ModelCard.load(target / "README.md").data
    assert pushed.license == "mit" and pushed.model_name == "mine"
    with pytest.raises(UsageError, match="is there already"):
        push.main([str(run.folder), f"to={target}"])
    assert [p.name for p in target.parent.iterdir()] == ["mine"]


def test_the_code_on_the_card_of_a_folder_names_the_folder(run, tmp_path):
    push.main([str(run.folder), f"to={tmp_path / 'mine'}"])
    text = (tmp_path / "mine" / "README.md").read_text()
    assert f'SentenceTransformer("{tmp_path / "mine"}")' in text and ModelCard(text).data.model_name == "mine"


class Hub:
    """What `push` asks of huggingface_hub.HfApi, kept in a dictionary."""

    asked = {}

    def create_repo(self, name, private, exist_ok):
        self.asked |= {"private": private, "exist_ok": exist_ok}
        return type("Repo", (), {"repo_id": name if "/" in name else f"me/{name}"})

    def create_branch(self, repo, branch, exist_ok):
        self.asked["branch"] = branch

    def create_commit(self, repo, operations, commit_message, revision):
        self.asked |= {"files": {o.path_in_repo: o.path_or_fileobj for o in operations}, "revision": revision}
        return type("Done", (), {"commit_url": f"https://hub/{repo}"})


def test_pushed_to_a_hub(run, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    push.main([str(run.folder), "to=embedder", "revision=v2"])
    asked = Hub.asked
    assert asked["private"] is True and asked["branch"] == asked["revision"] == "v2"
    model = run.folder / "model"
    assert asked["files"].keys() == {str(f.relative_to(model)) for f in model.rglob("*") if f.is_file()}
    assert b'SentenceTransformer("me/embedder")' in asked["files"]["README.md"]
    assert "https://hub/me/embedder" in capsys.readouterr().out
    push.main([str(run.folder), "to=other/it", "private=false"])
    assert asked["private"] is False and asked["revision"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "RUN to=…"),
        (["RUN", "to=a/b", "colour=red"], "colour: RUN to=…"),
        (["RUN", "to=a/b", "private=maybe"], "private=maybe: true or false"),
        (["RUN", "to=a/b"], "to=a/b: .*offline mode"),
        (["RUN", "to=a b/c"], "to=a b/c: "),
    ],
)
def test_what_cannot_be_pushed(run, arguments, message):
    with pytest.raises(UsageError, match=message):
        push.main([str(run.folder) if a == "RUN" else a for a in arguments])


def test_a_run_without_a_model_is_not_pushed(run):
    shutil.rmtree(run.folder / "model")
    with pytest.raises(UsageError, match="no model/ is there"):
        push.main([str(run.folder), "to=a/b"])
