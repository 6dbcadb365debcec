"""What is wrong with evaluation data, or with a model's vectors, is said; and ties are ordered as trec_eval orders them."""

import json
import math

import numpy as np
import pytest
import pytrec_eval
from sklearn.metrics import average_precision_score, ndcg_score

from unitsphere.errors import UsageError
from unitsphere.evaluation.geometry import Geometry
from unitsphere.evaluation.retrieval import Retrieval, measures
from unitsphere.evaluation.score import remarks, score
from unitsphere.types import RetrievalSet

CORPUS = [{"_id": "d1", "title": "A", "text": "tree"}, {"_id": "d2", "text": "graph"}]
QUERIES = [{"_id": "q1", "text": "a tree"}, {"_id": "q2", "text": "a graph"}]
QRELS = ["q1\td1\t1", "q2\td2\t1"]


@pytest.fixture
def folder(tmp_path):
    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS, header="query-id\tcorpus-id\tscore"):
        for name, rows in (("corpus", corpus), ("queries", queries)):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "qrels").mkdir(exist_ok=True)
        (tmp_path / "qrels" / "test.tsv").write_text("\n".join([header, *qrels]) + "\n")
        return str(tmp_path)

    return write


def embed(texts, role, max_length=None, prompt=None):
    return np.stack([np.random.default_rng(list(f" {t}".encode())).normal(size=8) for t in texts]).astype(np.float32)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"qrels": [*QRELS, "q9\td1\t1"]}, "the judgments name query q9, which is not in the data"),
        ({"qrels": [*QRELS, "q1\td9\t1"]}, "the judgments name document d9, which is not in the data"),
        ({"qrels": [*QRELS, "q1\td9\t0"]}, "the judgments name document d9"),
        ({"qrels": [*QRELS, "q1\td1\t2"]}, r"test.tsv, row 4: query q1 and document d1 have grade 2 here and 1"),
        ({"qrels": ["q1\td1\tone"]}, r"test.tsv, row 2: query-id, corpus-id, score expected \(invalid literal"),
        ({"qrels": ["q1\td1"]}, r"test.tsv, row 2: .*3 columns expected, found 2"),
        ({"qrels": ["q1\td1\t0"]}, "no query has a relevant document"),
        ({"header": "query\tdocument\tscore"}, r"test.tsv, row 2: query-id, corpus-id, score expected"),
        ({"corpus": []}, r"corpus.jsonl: it has no row"),
        ({"queries": []}, r"queries.jsonl: it has no row"),
        ({"corpus": [*CORPUS, {"_id": "d1", "text": "other"}]}, r"corpus.jsonl, row 3: the id 'd1' has another text"),
        ({"queries": [*QUERIES, {"_id": "q2", "text": "x"}]}, r"queries.jsonl, row 3: the id 'q2' has another text"),
        ({"corpus": [*CORPUS, "{"]}, r"corpus.jsonl, row 3: an object with _id and text expected"),
        ({"corpus": [*CORPUS, {"id": "d3", "text": "x"}]}, r"corpus.jsonl, row 3: an object with _id and text"),
    ],
)
def test_a_folder_that_does_not_fit(folder, files, message):
    with pytest.raises(UsageError, match=message):
        Retrieval("test", path=folder(**files))


def test_rows_that_are_only_repeated_are_harmless(folder):
    once = Retrieval("test", path=folder())(embed).metrics
    twice = Retrieval("test", path=folder([*CORPUS, CORPUS[0]], [*QUERIES, QUERIES[1]], [*QRELS, QRELS[0]]))(embed)
    assert twice.metrics == once


def test_queries_without_a_relevant_document_are_counted(folder):
    queries = [*QUERIES, {"_id": "q3", "text": "no answer"}, {"_id": "q4", "text": "none"}]
    path = folder(queries=queries, qrels=[*QRELS, "q3\td1\t0", "q4\td2\t0", "q4\td1\t0"])
    result = score([Retrieval("test", path=path)], embed)
    (name,) = result.protocol
    assert result.protocol[name]["queries"] == 2 and result.protocol[name]["unanswerable"] == 2
    assert remarks(result, None) == [f"{name}: left out 2 queries that have no relevant document"]


def test_texts_may_be_empty_and_are_counted(folder, embedder):
    corpus = [*CORPUS, {"_id": "d3", "title": "", "text": ""}, {"_id": "d4", "title": None, "text": None}]
    result = score([Retrieval("test", path=folder(corpus=corpus))], embedder.embed)
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert "2 documents or queries have no text" in remarks(result, None)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite(folder, value):
    def broken(texts, role, max_length=None, prompt=None):
        out = embed(texts, role)
        out[["graph" in text for text in texts], 3] = value
        return out

    with pytest.raises(UsageError, match=r"not finite for 1 of 2 texts, e.g. 'graph'"):
        score([Retrieval("test", path=folder())], broken)
    with pytest.raises(UsageError, match="not finite"):
        score([Geometry("test", path=folder())], broken)


def test_vectors_that_are_all_zero_have_no_neighbours_but_numbers(folder):
    def zero(texts, role, max_length=None, prompt=None):
        return np.zeros((len(texts), 4), dtype=np.float32)

    metrics = score([Retrieval("test", path=folder())], zero).metrics
    assert all(0 <= value <= 1 for value in metrics.values())


def slowly(run, grades):
    """trec_eval's measures, by its definitions: by score and then by id, both descending."""
    ranked = [d for d, _ in sorted(run.items(), key=lambda item: item[0], reverse=True)]
    ranked = sorted(ranked, key=lambda d: run[d], reverse=True)  # stable: ids stay descending
    hits = [grades.get(d, 0) >= 1 for d in ranked]
    relevant = sum(grade >= 1 for grade in grades.values())
    out = {f"recall@{k}": sum(hits[:k]) / relevant for k in (1, 5, 10, 100)}
    out["mrr@10"] = next((1 / (k + 1) for k, hit in enumerate(hits[:10]) if hit), 0.0)
    out["map@100"] = sum(sum(hits[: k + 1]) / (k + 1) for k in range(min(100, len(hits))) if hits[k]) / relevant
    gains = [grades.get(d, 0) / math.log2(k + 2) for k, d in enumerate(ranked[:10])]
    ideal = [g / math.log2(k + 2) for k, g in enumerate(sorted(grades.values(), reverse=True)[:10])]
    return out | {"ndcg@10": sum(gains) / sum(ideal)}


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_measures_on_ties_equal_trec_eval_written_slowly_and_pytrec_eval(levels, seed):
    rng = np.random.default_rng((levels, seed))
    names = [f"d{i}" for i in range(130)]
    run = {f"q{q}": {d: float(rng.integers(levels)) / levels for d in names} for q in range(6)}
    qrels = {q: {d: int(rng.integers(0, 4)) for d in rng.choice(names, 15)} | {"d7": 1} for q in run}
    table = measures(run, qrels).set_index("query")
    for query in run:
        for name, value in slowly(run[query], qrels[query]).items():
            assert table.loc[query, name] == pytest.approx(value, abs=1e-9), (query, name)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10", "map_cut.100"}).evaluate(run)
    for ours, name in (("ndcg@10", "ndcg_cut_10"), ("recall@10", "recall_10"), ("map@100", "map_cut_100")):
        assert [table.loc[q, ours] for q in run] == [theirs[q][name] for q in run]


@pytest.mark.parametrize("seed", range(5))
def test_measures_without_ties_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, grades = rng.permutation(60) / 60, rng.integers(0, 3, 60)
    names = [f"d{i}" for i in range(60)]
    qrels = {"q": {d: int(grade) for d, grade in zip(names, grades, strict=True)}}
    table = measures({"q": dict(zip(names, map(float, scores), strict=True))}, qrels)
    assert table["ndcg@10"][0] == pytest.approx(ndcg_score([grades], [scores], k=10))
    assert table["map@100"][0] == pytest.approx(average_precision_score(grades >= 1, scores))


def test_equal_documents_are_found_in_the_order_of_their_ids():
    """Equal texts have equal vectors, to the last digit: the larger id stands first, wherever it is in the corpus."""
    ids = [f"d{i:02}" for i in np.random.default_rng(0).permutation(30)]
    corpus = dict.fromkeys(ids, "the same") | {"e": "another"}
    for relevant, expected in (("d29", 1.0), ("d28", 1 / 2), ("d20", 1 / 10), ("d19", 0.0)):
        made = RetrievalSet("made", corpus, {"q": "the same"}, {"q": {relevant: 1}})
        assert Retrieval("test", own=made)(embed).metrics["made/mrr@10"] == pytest.approx(expected), relevant
