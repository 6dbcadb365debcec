"""Finding translations: against a double loop, with sentences that repeat, and with files that are wrong."""

import json
import math

import numpy as np
import pytest

from conftest import composed
from unitsphere.build import build
from unitsphere.cli.train import chosen_by, start
from unitsphere.errors import UsageError
from unitsphere.evaluation.bitext import Bitext, read
from unitsphere.evaluation.score import score
from unitsphere.training.run import train


def embedded(dim=6, asked=None):
    """Made-up vectors, near for texts with the same last word; notes in `asked` what it was called with."""

    def noise(text):
        return np.random.default_rng([ord(c) for c in text]).normal(size=dim)

    def embed(texts, role, max_length=None, prompt=None):
        if asked is not None:
            asked.append((role, max_length))
        return np.stack([noise(text.split()[-1]) + 0.3 * noise(text) for text in texts]).astype(np.float32)

    return embed


def written(folder, pairs, name="pairs.tsv"):
    (folder / name).write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return {"en-zh": name}


def slowly(embed, asked, among):
    """recall@1, recall@5, mrr@10 and accuracy of each distinct sentence, by loops."""
    out = []
    for query in dict.fromkeys(asked):
        right = {b for a, b in zip(asked, among, strict=True) if a == query}
        (q,) = embed([query], "query")
        cosine = {}
        for d in dict.fromkeys(among):
            (v,) = embed([d], "query")
            cosine[d] = float(q @ v / np.linalg.norm(q) / np.linalg.norm(v))
        ranking = sorted(cosine, key=lambda d: -cosine[d])
        ranks = [ranking.index(d) + 1 for d in right]
        recalls = [sum(rank <= k for rank in ranks) / len(right) for k in (1, 5)]
        out.append([*recalls, 1 / min(ranks) if min(ranks) <= 10 else 0.0, float(min(ranks) == 1)])
    return np.mean(out, axis=0)


def repeated():
    """40 pairs whose sides share a number now and then, so that some are found; with repeated sentences on both."""
    draw = np.random.default_rng(3)
    pairs = [(f"sentence n{i}", f"句子 n{i if draw.random() < 0.5 else 100 + i}") for i in range(36)]
    return [*pairs, pairs[0], ("sentence n1", "句子 n200"), ("sentence n300", pairs[2][1]), ("also n3", "句子 n3")]


def test_the_measures_are_those_of_a_double_loop(tmp_path):
    pairs, asked = repeated(), []
    result = Bitext("test", written(tmp_path, pairs), {}, str(tmp_path), max_length=9)(embedded(asked=asked))
    assert set(asked) == {("symmetric", 9)}  # both sides
    expected = {}
    for a, b, sides in (("en", "zh", pairs), ("zh", "en", [pair[::-1] for pair in pairs])):
        expected[f"bitext-{a}-{b}"] = slowly(embedded(), *map(list, zip(*sides, strict=True)))
    for task, (r1, r5, mrr, _) in expected.items():
        found = [result.metrics[f"{task}/{m}"] for m in ("recall@1", "recall@5", "mrr@10")]
        assert found == pytest.approx([r1, r5, mrr], abs=1e-6) and 0.2 < r1 < 1
        table = result.items[task]
        assert table["query"].is_unique and table["recall@1"].mean() == pytest.approx(r1)
    assert result.primary == "bitext/accuracy"
    assert result.metrics["bitext/accuracy"] == pytest.approx(np.mean([e[3] for e in expected.values()]))
    assert set(result.protocol) == {"bitext", "bitext-en-zh", "bitext-zh-en"}


def test_a_copy_of_the_right_sentence_is_right(tmp_path):
    pairs = [(f"a n{i}", f"b n{i}") for i in range(5)] + [("another n0", "b n0")]  # two sentences, one translation
    result = Bitext("test", written(tmp_path, pairs), {}, str(tmp_path))(embedded())
    assert result.metrics["bitext-en-zh/recall@1"] == 1.0 and result.metrics["bitext/accuracy"] == 1.0


def test_jsonl_is_keyed_by_language(tmp_path):
    pairs = repeated()
    lines = [json.dumps({"zh": b, "en": a}, ensure_ascii=False) + "\n" for a, b in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    tsv = Bitext("test", written(tmp_path, pairs), {}, str(tmp_path))
    jsonl = Bitext("test", {"en-zh": "pairs.jsonl"}, {}, str(tmp_path))
    assert tsv(embedded()).metrics == jsonl(embedded()).metrics


def test_what_must_not_be_trained_on(tmp_path):
    pairs = repeated()
    held = Bitext("test", written(tmp_path, pairs), {}, str(tmp_path)).held()
    assert held == {"bitext-en-zh": pairs}


def test_dev_scores_the_files_that_it_is_given_and_none_otherwise(tmp_path):
    files = written(tmp_path, repeated())
    assert Bitext("dev", {}, files, str(tmp_path))(embedded()).metrics
    none = Bitext("dev", files, {}, str(tmp_path))
    assert score([none], embedded()).metrics == {} and none.held() == {}
    assert Bitext("dev", files, {}).pairs == {}  # nor is a folder needed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("english", "a\tb\n", "'english' should name two languages"),
        ("en-en", "a\tb\n", "'en-en' should name two languages"),
        ("en-zh", "a\tb\nonly one\n", r"row 2: two sentences expected \(0, 1\), found"),
        ("en-zh", "a\tb\nc\t \n", "row 2: two sentences"),
        ("en-zh", "a\tb\n", "1 pairs; a search needs two"),
        ("en-zh", "", "0 pairs"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    (tmp_path / "f.tsv").write_text(content)
    with pytest.raises(UsageError, match=message):
        read(name, tmp_path / "f.tsv")


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no\.tsv is missing"):
        Bitext("test", {"en-zh": "no.tsv"}, {}, str(tmp_path))
    with pytest.raises(UsageError, match="UNITSPHERE_DATA"):
        Bitext("test", {"en-zh": "no.tsv"}, {})


def test_the_files_of_the_option_are_there(shared, monkeypatch):
    monkeypatch.setenv("UNITSPHERE_DATA", str(shared))
    evaluator = build(composed("eval=bitext").eval.bitext, split="test", own=None)
    sizes = {name: len(pairs) for name, pairs in evaluator.pairs.items()}
    assert sizes == {"en-zh": 1000, "en-de": 500, "en-fr": 500}
    assert all(pairs.map(len).min(axis=None) > 0 for pairs in evaluator.pairs.values())


def test_a_run_of_no_steps_scores_and_saves_the_model_as_it_is(tmp_path, pairs):
    files = written(tmp_path, repeated())
    overrides = [
        "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={pairs}", "data.batch_size=8", "trainer.max_steps=0",
        "trainer.accelerator=cpu", "select=last", "eval=bitext", f"eval.bitext.path={tmp_path}", "~eval.bitext.tests.en-de",
        "~eval.bitext.tests.en-fr", f"eval.bitext.tests.en-zh={files['en-zh']}", f"outputs={tmp_path}/out",
    ]  # fmt: skip
    run = start(composed(*overrides), [], {})
    metrics = train(run.config, run)
    assert metrics["before/bitext/accuracy"] == metrics["test/bitext/accuracy"] and run.info["best_step"] == 0
    assert (run.folder / "model" / "config.json").exists()
    assert (run.folder / "scores" / "test" / "bitext-zh-en.parquet").exists()
    assert math.isnan(chosen_by(run))
