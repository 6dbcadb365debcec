"""Probes against scikit-learn written directly, and against sentence-transformers."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, normalized_mutual_info_score, v_measure_score

from conftest import composed
from unitsphere.build import build
from unitsphere.data.docstrings import labelled
from unitsphere.errors import UsageError
from unitsphere.evaluation.bitext import Bitext
from unitsphere.evaluation.classification import Classification
from unitsphere.evaluation.clustering import Clustering
from unitsphere.evaluation.geometry import Geometry
from unitsphere.evaluation.pair_classification import PairClassification, best_accuracy, best_f1
from unitsphere.evaluation.retrieval import unit
from unitsphere.types import RetrievalSet

COLUMNS = {"text": "text", "label": "label"}
NO_FILES = {"train": None, "dev": None, "test": None}
PAIR_COLUMNS = {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}


def made(split="test", n=240, labels=3):
    return pd.DataFrame(
        {"text": [f"{split} text {i}" for i in range(n)], "label": [f"l{i % labels}" for i in range(n)]}
    )


def embed(texts, role, max_length=None, prompt=None):
    """A noisy point near the label's corner; the label is the text's number mod 3."""
    out = []
    for text in texts:
        number = int(text.rpartition(" ")[2])
        noise = np.random.default_rng((number, ord(text[0]))).normal(size=8)
        out.append(noise + 1.2 * np.eye(8)[number % 3])
    return np.array(out, dtype=np.float32)


def written(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture
def files(tmp_path):
    rows = {split: made(split).to_dict("records") for split in ("train", "test")}
    return {"dev": None} | {split: written(tmp_path, f"{split}.jsonl", of) for split, of in rows.items()}


def test_classification_equals_scikit_learn(files):
    probe = Classification("test", made, files, COLUMNS)
    result = probe(embed)
    x, z = embed(made("train").text, "query"), embed(made("test").text, "query")
    y, gold = made("train").label.to_numpy(), made("test").label.to_numpy()
    predicted = LogisticRegression(max_iter=1000).fit(x, y).predict(z)
    assert 0.4 < accuracy_score(gold, predicted) < 1  # neither trivial nor hopeless
    assert result.metrics["classification/accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert result.metrics["classification/f1_macro"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    nearest = []
    for row in unit(z) @ unit(x).T:
        best = y[np.argsort(-row, kind="stable")[:5]]
        names, counts = np.unique(best, return_counts=True)
        nearest.append(names[counts.argmax()])
    assert result.metrics["classification/knn_accuracy"] == pytest.approx(accuracy_score(gold, nearest))
    items = result.items["classification"]
    assert items["accuracy"].mean() == pytest.approx(result.metrics["classification/accuracy"])
    assert list(items["query"]) == list(made("test").text) and result.protocol["classification"]["majority"] == 0.3333
    assert probe.held() == {"classification": list(made("test").text)}


def test_few_samples_a_label_as_mteb_draws_them(files):
    result = Classification("test", made, files, COLUMNS, samples_per_label=4, repeats=3, max_iter=100)
    rows = result._draws(result.train.label.to_numpy())
    assert len(rows) == 3 and all(
        pd.Series(result.train.label.to_numpy()[r]).value_counts().tolist() == [4, 4, 4] for r in rows
    )
    assert not np.array_equal(rows[0], rows[1])
    scored = result(embed)
    whole = Classification("test", made, files, COLUMNS)(embed)
    assert scored.metrics["classification/accuracy"] < whole.metrics["classification/accuracy"]
    assert scored.metrics == result(embed).metrics and scored.protocol["classification"]["repeats"] == 3


def test_without_files_one_half_is_fitted_and_the_other_scored(files):
    probe = Classification("test", made, NO_FILES, COLUMNS)
    assert not set(probe.train.text) & set(probe.test.text) and len(probe.train) + len(probe.test) == 240
    assert 80 < len(probe.train) < 160
    assert set(Classification("dev", made, NO_FILES, COLUMNS).test.text) <= set(made("dev").text)
    dev = Classification("dev", made, files, COLUMNS)  # a fifth of train, which is then not fitted on
    assert set(dev.test.text) | set(dev.train.text) == set(made("train").text)
    assert not set(dev.train.text) & set(dev.test.text) and 20 < len(dev.test) < 80


def test_clustering_equals_scikit_learn():
    probe = Clustering("test", made, NO_FILES, COLUMNS, seeds=2)
    metrics, gold = probe(embed).metrics, made().label
    found = [KMeans(3, n_init=1, random_state=seed).fit_predict(embed(made().text, "query")) for seed in (0, 1)]
    assert metrics["clustering/v_measure"] == pytest.approx(np.mean([v_measure_score(gold, f) for f in found]))
    assert metrics["clustering/v_measure"] == pytest.approx(
        np.mean([normalized_mutual_info_score(gold, f) for f in found])
    )
    assert 0.02 < metrics["clustering/v_measure"] < 1
    assert Clustering("test", made, NO_FILES, COLUMNS, batch_size=64)(embed).metrics["clustering/ari"] > 0


def pair_file(folder, n=90):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(n):
        same = int(rng.integers(0, 2))
        other = 3 * i if same or rng.random() < 0.3 else 3 * i + 1  # some of the others look the same
        rows.append({"sentence1": f"a {3 * i}", "sentence2": f"b {other + 3 * int(rng.integers(0, 2))}", "label": same})
    return written(folder, "pairs.jsonl", rows), rows


def test_pair_classification_equals_sentence_transformers(tmp_path):
    pytest.importorskip("sentence_transformers", reason="a dev dependency")
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator as Theirs

    _, rows = pair_file(tmp_path)
    result = PairClassification("test", {"made": "pairs.jsonl"}, {}, PAIR_COLUMNS, str(tmp_path))(embed)
    labels = np.array([row["label"] for row in rows])

    class Fixed(Theirs):
        def embed_inputs(self, model, sentences, **kwargs):
            return embed(sentences, "query")

    theirs = Fixed(*([row[side] for row in rows] for side in ("sentence1", "sentence2")), labels.tolist())
    theirs.similarity_fn_names = ["cosine"]
    numbers = theirs.compute_metrics(None)["cosine"]
    assert 0.5 < numbers["ap"] < 1
    for name in ("ap", "accuracy", "f1"):
        assert result.metrics[f"made/{name}"] == pytest.approx(numbers[name], abs=1e-6), name
    assert result.items["made"]["accuracy"].mean() == pytest.approx(result.metrics["made/accuracy"])
    assert result.primary == "made/ap"


@pytest.mark.parametrize("seed", range(20))
def test_best_thresholds_with_ties_equal_trying_them_all(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 25) / 5, rng.integers(0, 2, 25)
    labels[:2] = 0, 1
    tried = [(scores >= t).astype(int) for t in (*set(scores), np.inf)]
    accuracy, threshold = best_accuracy(scores, labels)
    assert accuracy == pytest.approx(max(accuracy_score(labels, p) for p in tried))
    assert accuracy_score(labels, scores >= threshold) == pytest.approx(accuracy)
    assert best_f1(scores, labels) == pytest.approx(max(f1_score(labels, p, zero_division=0) for p in tried))


def test_several_pair_tasks_have_a_mean(tmp_path):
    pair_file(tmp_path)
    tasks = {"a": "pairs.jsonl", "b": "pairs.jsonl"}
    evaluator = PairClassification("test", tasks, {}, PAIR_COLUMNS, str(tmp_path))
    result = evaluator(embed)
    assert result.primary == "pair_classification/ap"
    assert result.metrics[result.primary] == pytest.approx((result.metrics["a/ap"] + result.metrics["b/ap"]) / 2)
    assert len(evaluator.held()["a"]) == 90


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "a"},
            "row 2: column 'label' is missing or empty; found: text. .*eval.classification.columns|columns",
        ),
        ({"text": "", "label": "x"}, "column 'text' is missing or empty"),
        ("nonsense", "row 2: not valid JSON"),
    ],
)
def test_a_labelled_file_that_does_not_fit(tmp_path, row, message):
    lines = [json.dumps({"text": "a", "label": "x"}), row if isinstance(row, str) else json.dumps(row)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=message):
        Clustering("test", made, {"train": None, "dev": None, "test": str(tmp_path / "bad.jsonl")}, COLUMNS)


def test_labels_that_do_not_fit(tmp_path, files):
    with pytest.raises(UsageError, match=r"files.test is not set"):
        Clustering("test", made, files | {"test": None}, COLUMNS)
    with pytest.raises(UsageError, match="its 240 texts have 1 labels; two are needed"):
        Clustering("test", lambda split: made(labels=1), NO_FILES, COLUMNS)
    written(tmp_path, "pairs.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 2}])
    with pytest.raises(UsageError, match="record 1: the label is 0 or 1, found '2'"):
        PairClassification("test", {"made": "pairs.jsonl"}, {}, PAIR_COLUMNS, str(tmp_path))
    written(tmp_path, "pairs.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 1}])
    with pytest.raises(UsageError, match="every pair has the label 1"):
        PairClassification("test", {"made": "pairs.jsonl"}, {}, PAIR_COLUMNS, str(tmp_path))
    with pytest.raises(UsageError, match="UNITSPHERE_DATA"):
        PairClassification("test", {"made": "pairs.jsonl"}, {}, PAIR_COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["dev", "test"])
def test_docstrings_have_labels(split, embedder):
    """The options as they are configured, on the tiny encoder."""
    config = composed("eval=[classification,clustering]", "model=x", root="eval").eval
    table = labelled(split, 20)
    assert len(table) > 500 and table.text.is_unique
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for node in config.values():
            result = build({**node, "max_length": 16, "max_rows": 300}, split=split, own=None)(embedder.embed)
            assert result.primary in result.metrics and all(0 <= v <= 1 for v in result.metrics.values())


def test_a_stamp_changes_with_the_texts_that_are_scored(tmp_path):
    """Of as many texts, labels and pairs; and of their mean."""

    def stamps(word):
        rows = [{"sentence1": f"{word} {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(8)]
        texts = [{"text": f"{word} {i}", "label": f"l{i % 2}"} for i in range(8)]
        for name, of_file in (("pairs", rows), ("texts", texts)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_file))
        (tmp_path / "en-de.tsv").write_text("".join(f"{word} {i}\tb {i}\n" for i in range(8)))
        files = NO_FILES | {"test": str(tmp_path / "texts.jsonl")}
        of = RetrievalSet("s", {"d": word, "e": "x"}, {"q": "a", "r": "b"}, {"q": {"d": 1}, "r": {"e": 1}})
        made = [
            Classification("test", None, files, COLUMNS),
            Clustering("test", None, files, COLUMNS, seeds=1),
            PairClassification("test", dict.fromkeys("ab", "pairs.jsonl"), {}, PAIR_COLUMNS, str(tmp_path)),
            Bitext("test", {"en-de": "en-de.tsv"}, {}, str(tmp_path)),
            Geometry("test", of),
        ]
        results = [one(embed) for one in made]
        assert all({name.partition("/")[0] for name in result.metrics} <= result.protocol.keys() for result in results)
        return [result.protocol for result in results]

    def embed(texts, role, max_length=None, prompt=None):
        return np.random.default_rng(0).normal(size=(len(texts), 4)).astype(np.float32)

    assert stamps("one") == stamps("one")
    for one, two in zip(stamps("one"), stamps("two"), strict=True):
        assert all(one[task] != two[task] for task in one)
