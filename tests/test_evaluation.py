"""Evaluators against brute force, pytrec_eval, scipy and formulas written as loops."""

import itertools
import json
import math

import numpy as np
import pytest
import pytrec_eval
from scipy.stats import spearmanr

from conftest import composed
from unitsphere.cli import evaluate as evaluation
from unitsphere.errors import UsageError
from unitsphere.evaluation import geometry
from unitsphere.evaluation.cached import CachedEmbed
from unitsphere.evaluation.geometry import Geometry
from unitsphere.evaluation.retrieval import Retrieval, measures, unit
from unitsphere.evaluation.score import score
from unitsphere.evaluation.sts import STS
from unitsphere.search.dense import Approximate
from unitsphere.types import RetrievalSet

RNG = np.random.default_rng(0)


def random_set(queries=20, documents=60):
    qrels = {
        f"q{i}": {f"d{j}": int(RNG.integers(0, 3)) for j in RNG.choice(documents, 4, replace=False)} | {f"d{i}": 1}
        for i in range(queries)
    }
    texts = ({f"d{j}": f"document {j}" for j in range(documents)}, {f"q{i}": f"query {i}" for i in range(queries)})
    return RetrievalSet("made", *texts, qrels)


def embed(texts, role, max_length=None, prompt=None):
    """A fixed random vector for each text, of any length."""
    return np.stack(
        [np.random.default_rng(abs(hash((t, role))) % 2**32).normal(size=8).astype(np.float32) for t in texts]
    )


def test_measures_equal_brute_force():
    made = random_set()
    result = Retrieval("test", own=made)(embed)
    q, d = unit(embed(list(made.queries.values()), "query")), unit(embed(list(made.corpus.values()), "document"))
    expected = {name: [] for name in ("mrr@10", "recall@1", "recall@5", "recall@10", "ndcg@10", "map@100")}
    for i, query in enumerate(made.queries):
        grades = made.qrels[query]
        ranking = [list(made.corpus)[j] for j in np.argsort(-(d @ q[i]))]
        hits = [grades.get(doc, 0) >= 1 for doc in ranking]
        relevant = sum(g >= 1 for g in grades.values())
        expected["mrr@10"].append(next((1 / (k + 1) for k in range(10) if hits[k]), 0.0))
        for k in (1, 5, 10):
            expected[f"recall@{k}"].append(sum(hits[:k]) / relevant)
        gains = [grades.get(doc, 0) / math.log2(k + 2) for k, doc in enumerate(ranking[:10])]
        ideal = [g / math.log2(k + 2) for k, g in enumerate(sorted(grades.values(), reverse=True)[:10])]
        expected["ndcg@10"].append(sum(gains) / sum(ideal))
        expected["map@100"].append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(len(hits)) if hits[k]) / relevant)
    for name, values in expected.items():
        assert result.metrics[f"made/{name}"] == pytest.approx(np.mean(values), abs=1e-6), name
    assert result.primary == "made/mrr@10" and len(result.items["made"]) == 20


@pytest.mark.parametrize("documents", [60, 130])
def test_a_query_that_is_a_document_does_not_find_itself_where_told(documents):
    """BEIR's rule on pytrec_eval: the whole ranking without the query's own id, and the first hundred of it."""
    made = random_set(documents=documents)
    own = {f"d{i}": f"query {i}" for i in range(15)}  # the last five queries are no documents
    asked = {f"d{i}" if i < 15 else f"q{i}": f"query {i}" for i in range(20)}
    qrels = {query: {d: g for d, g in made.qrels[f"q{i}"].items() if d != query} for i, query in enumerate(asked)}
    made = RetrievalSet("made", {**made.corpus, **own}, asked, qrels)

    def alike(texts, role, max_length=None, prompt=None):
        return embed(texts, "any")

    q, d = unit(alike(list(asked.values()), "query")), unit(alike(list(made.corpus.values()), "document"))
    run = {}
    for query, scores in zip(asked, q @ d.T, strict=True):
        best = sorted(zip(scores.tolist(), made.corpus, strict=True), reverse=True)
        run[query] = dict([(doc, score) for score, doc in best if doc != query][:100])
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "map_cut_100", "recall_100"}).evaluate(run)
    for index in (None, Approximate("Flat")):  # HNSW finds not all of them, and others in every build on two threads
        result = Retrieval("test", own=made, index=index, ignore_identical_ids=True)(alike)
        for ours, name in (("ndcg@10", "ndcg_cut_10"), ("map@100", "map_cut_100"), ("recall@100", "recall_100")):
            assert result.metrics[f"made/{ours}"] == pytest.approx(
                np.mean([m[name] for m in theirs.values()]), abs=1e-6
            )
    assert result.protocol["made"]["ignore_identical_ids"] is True
    plain = Retrieval("test", own=made)(alike)
    assert plain.metrics["made/ndcg@10"] < result.metrics["made/ndcg@10"]
    assert plain.protocol["made"]["ignore_identical_ids"] is False  # so that the two are not compared in silence


def test_measures_equal_pytrec_eval_and_mrr_is_cut_at_ten():
    run = {"q": {f"d{i:02}": 1.0 - i / 100 for i in range(20)}}
    late = measures(run, {"q": {"d12": 1}})
    assert late["mrr@10"][0] == 0 and late["recall@100"][0] == 1
    theirs = pytrec_eval.RelevanceEvaluator({"q": {"d12": 1}}, {"recip_rank", "map_cut.100"}).evaluate(run)["q"]
    assert theirs["recip_rank"] == pytest.approx(1 / 13) and late["map@100"][0] == pytest.approx(theirs["map_cut_100"])


def test_ties_are_broken_by_document_id():
    run = {"q": {f"d{i:02}": 0.5 for i in range(12)}}
    assert measures(run, {"q": {"d11": 1}})["mrr@10"][0] == 1.0  # trec_eval: the larger id first
    assert measures(run, {"q": {"d01": 1}})["mrr@10"][0] == 0.0


def test_recall_is_not_hit_rate():
    assert measures({"q": {"a": 1.0}}, {"q": {"a": 1, "b": 1}})["recall@1"][0] == 0.5


@pytest.fixture
def sts_folder(tmp_path):
    for task in ("a", "b"):
        rows = [
            {"sentence1": f"{task} {i}", "sentence2": f"{task} {i + 1}", "score": float(RNG.integers(0, 5))}
            for i in range(30)
        ]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def sts(folder, split="test", **kwargs):
    options = {
        "tests": {"a": "a.jsonl", "b": "b.jsonl"},
        "dev": {"simcse": {"a": "a.jsonl"}},
        "hub": {},
        "path": str(folder),
    }
    return STS(split, **(options | kwargs))


def test_sts_is_spearman_of_the_cosine(sts_folder):
    result = sts(sts_folder)(embed)
    for task in ("a", "b"):
        rows = [json.loads(line) for line in (sts_folder / f"{task}.jsonl").read_text().splitlines()]
        predicted = []
        for row in rows:
            x, y = embed([row["sentence1"], row["sentence2"]], "symmetric")
            predicted.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        assert result.metrics[f"sts/{task}"] == pytest.approx(spearmanr(predicted, [r["score"] for r in rows])[0])
    assert result.metrics["sts/avg"] == pytest.approx((result.metrics["sts/a"] + result.metrics["sts/b"]) / 2)
    assert result.primary == "sts/avg" and sts(sts_folder, "dev")(embed).primary == "sts/a"


def test_sts_says_what_is_wrong(sts_folder):
    (sts_folder / "b.jsonl").write_text('{"sentence1": "x", "sentence2": "y", "score": "?"}\n')
    with pytest.raises(UsageError, match=r"b.jsonl, row 1"):
        sts(sts_folder)
    (sts_folder / "b.jsonl").unlink()
    with pytest.raises(UsageError, match="UNITSPHERE_DATA"):
        sts(sts_folder)
    with pytest.raises(UsageError, match="simcse would fit"):
        sts(sts_folder, protocol="other")


def test_geometry_equals_its_formulas():
    x, y = unit(RNG.normal(size=(12, 5))), unit(RNG.normal(size=(12, 5)))
    distances = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(x, 2)]
    assert geometry.uniformity(x) == pytest.approx(math.log(np.mean([math.exp(-2 * d) for d in distances])))
    assert geometry.alignment(x, y) == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in zip(x, y, strict=True)]))
    assert geometry.mean_cosine(x) == pytest.approx(np.mean([a @ b for a, b in itertools.combinations(x, 2)]))
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True) * len(x)).clip(1e-15)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    assert geometry.effective_rank(x) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_geometry_of_known_spaces():
    one = np.tile([[1.0, 0.0]], (6, 1))
    assert geometry.uniformity(one) == 0 and geometry.mean_cosine(one) == pytest.approx(1)
    assert geometry.effective_rank(one) == pytest.approx(1, abs=1e-6)
    cross = np.array([[1, 0], [0, 1], [-1, 0], [0, -1.0]])
    assert geometry.effective_rank(cross) == pytest.approx(2) and geometry.mean_cosine(cross) == pytest.approx(-1 / 3)
    assert set(Geometry("test", own=random_set())(embed).metrics) == {
        "geometry/alignment", "geometry/uniformity", "geometry/effective_rank", "geometry/mean_cosine",
    }  # fmt: skip


def test_a_text_is_embedded_once_a_round():
    calls = []

    def counting(texts, role, max_length=None, prompt=None):
        calls.extend((role, t) for t in texts)
        return embed(texts, role)

    cached = CachedEmbed(counting)
    first = cached(["a", "b", "a"], "query")
    again = cached(["b", "c"], "query")
    assert calls == [("query", "a"), ("query", "b"), ("query", "c")]
    np.testing.assert_array_equal(first[1], again[0])
    np.testing.assert_array_equal(first[0], first[2])


def test_scores_of_several_evaluators_are_one_result(sts_folder):
    result = score([sts(sts_folder), Retrieval("test", own=random_set())], embed)
    assert result.primary == "sts/avg" and "made/mrr@10" in result.metrics and set(result.protocol) == {"sts", "made"}
    with pytest.raises(UsageError, match="two evaluators report"):
        score([sts(sts_folder), sts(sts_folder)], embed)
    assert score([], embed).metrics == {}


def test_nothing_to_search():
    with pytest.raises(UsageError, match="no dev queries to score"):
        Retrieval("dev")


@pytest.mark.slow
def test_minilm_on_shared_data_equals_sentence_transformers(shared):
    """The seven STS tasks and a retrieval set, against scipy and pytrec_eval over that library's vectors."""
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    from conftest import composed
    from unitsphere import artefact
    from unitsphere.build import build
    from unitsphere.encoders.minilm import folder

    theirs, ours = library.SentenceTransformer(str(folder()), device="cpu"), artefact.load(folder())
    node = composed("eval=sts", "model=x", root="eval").eval.sts
    evaluator = build({**node, "path": str(shared)}, split="test", own=None)
    evaluator.tasks = {task: evaluator.tasks[task] for task in ("sts16", "stsb")}
    metrics = evaluator(ours.embed).metrics
    for task, pairs in evaluator.tasks.items():
        a, b = (theirs.encode(pairs[s].tolist(), normalize_embeddings=True) for s in ("sentence1", "sentence2"))
        assert 100 * metrics[f"sts/{task}"] == pytest.approx(100 * spearmanr((a * b).sum(1), pairs.score)[0], abs=0.01)
    retrieval = Retrieval("test", path=str(shared / "cranfield"), max_length=64)
    theirs.max_seq_length = 64
    metrics, made = retrieval(ours.embed).metrics, retrieval.set
    q, d = (theirs.encode(list(t.values()), normalize_embeddings=True) for t in (made.queries, made.corpus))
    run = {
        i: dict(zip(made.corpus, map(float, row), strict=True)) for i, row in zip(made.queries, q @ d.T, strict=True)
    }
    scored = pytrec_eval.RelevanceEvaluator(made.qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    for name, key in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100")):
        assert 100 * metrics[f"cranfield/{name}"] == pytest.approx(
            100 * np.mean([s[key] for s in scored.values()]), abs=0.01
        )


def test_a_text_is_searched_under_its_own_instruction():
    asked = {}

    def recording(texts, role, max_length=None, prompt=None):
        asked.update(dict.fromkeys(texts, prompt))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    instructions = {("query", "short"): "find: ", ("document", "a longer document"): "passage: "}
    corpus = {"1": "a longer document", "2": "x"}
    made = RetrievalSet(
        "made", corpus, {"1": "short", "2": "another"}, {"1": {"1": 1}, "2": {"2": 1}}, None, instructions
    )
    Retrieval("test", own=made)(recording)
    assert asked == {"short": "find: ", "another": None, "a longer document": "passage: ", "x": None}


def test_what_follows_retrieval_cuts_its_texts_as_retrieval_does():
    for of in ("robustness", "truncation", "geometry", "map", "hybrid"):
        config = composed(f"eval=[retrieval,{of}]", "eval.retrieval.max_length=17", "model=x", root="eval").eval[of]
        assert config.get("evaluator", config).max_length == 17, of
    told = "eval.retrieval.ignore_identical_ids=true"
    assert composed("eval=[retrieval,hybrid]", told, "model=x", root="eval").eval.hybrid.ignore_identical_ids


def test_an_evaluation_can_be_repeated_from_any_folder(tmp_path, monkeypatch):
    saved = []

    def stopped(config, parent):
        saved.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", stopped)
    monkeypatch.chdir(tmp_path)
    for name in ("words", "labels.jsonl"):
        (tmp_path / name).mkdir()
    options = ["eval=[retrieval,classification]", "eval.retrieval.path=words", "model=x"]
    files = ["eval.classification.files.test=labels.jsonl", "eval.classification.files.train=owner/of_a_hub"]
    with pytest.raises(KeyboardInterrupt):
        evaluation.job(composed(*options, *files, root="eval"))
    assert saved[0].eval.retrieval.path == str(tmp_path / "words")
    assert saved[0].eval.classification.files == {
        "train": "owner/of_a_hub", "dev": None, "test": str(tmp_path / "labels.jsonl")
    }  # fmt: skip
