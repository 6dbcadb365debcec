"""eval=hybrid: each task against retrieval measured another way, and one table beside eval=retrieval."""

import math
from functools import partial

import numpy as np
import pytest

from unitsphere.errors import UsageError
from unitsphere.evaluation.hybrid import Hybrid
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.score import remarks, score, unfinished
from unitsphere.search.bm25 import BM25
from unitsphere.types import RetrievalSet

SHAPES = ("circle", "square", "star", "cross", "ring", "cube")
COLOURS = ("red", "green", "blue", "old", "new")


@pytest.fixture
def made():
    """Thirty documents, and queries whose words are in several; one query has no word in common with any."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    corpus = {f"d{i}": f"a {c} {s} of size {i % 4}" for i, (c, s) in enumerate(pairs)}
    queries = {f"q{i}": f"{c} {s}" for i, (c, s) in enumerate(pairs[::4])} | {"far": "日本"}
    qrels = {f"q{i}": {f"d{4 * i}": 2, f"d{(4 * i + 6) % 30}": 1} for i in range(8)} | {"far": {"d0": 1}}
    return RetrievalSet("shapes", corpus, queries, qrels)


def embed(texts, role, max_length=None, prompt=None):
    """Letters counted, with noise that is a function of the text."""
    out = []
    for text in texts:
        noise = np.random.default_rng(sum(map(ord, text))).normal(size=26)
        out.append([text.count(chr(97 + i)) + noise[i] for i in range(26)])
    return np.array(out, np.float32)


def scorer(path):
    assert path == "somewhere"
    return lambda pairs: np.array([[len(set(q.split()) & set(d.split())) + len(d) / 1000] for q, d in pairs])


def measured(order, grades):
    """mrr@10 and ndcg@10 of document ids, best first."""
    first = next((1 / rank for rank, d in enumerate(order[:10], 1) if grades.get(d, 0) >= 1), 0.0)
    gain = sum(grades.get(d, 0) / math.log2(rank + 1) for rank, d in enumerate(order[:10], 1))
    ideal = sum(g / math.log2(rank + 1) for rank, g in enumerate(sorted(grades.values(), reverse=True)[:10], 1))
    return first, gain / ideal


def slow(made, alpha, c, depth, ignore=False):
    """Task -> means over queries, from full score tables and no code of search or evaluation but BM25's;
    with `ignore` a document with the query's own id is struck out of every table."""
    ids, texts = list(made.corpus), list(made.corpus.values())
    index, z = BM25(texts), embed(texts, "document")
    tables = {kind: [] for kind in ("bm25", "hybrid", "rrf", "reranked")}
    for query, text in made.queries.items():
        v, left = embed([text], "query")[0], [d for d in ids if not (ignore and d == query)]
        dense = {
            d: float(np.dot(v, x) / np.linalg.norm(v) / np.linalg.norm(x))
            for d, x in zip(ids, z, strict=True)
            if d in left
        }
        words = {d: float(s) for d, s in zip(ids, index.scores(text), strict=True) if s > 0 and d in left}

        def scaled(of):
            low, high = min(of.values(), default=0), max(of.values(), default=0)
            return {d: (s - low) / (high - low) if high > low else 1.0 for d, s in of.items()}

        def ranks(of):
            best = sorted(of, key=lambda d: (-of[d], ids.index(d)))
            return {d: 1 / (c + rank) for rank, d in enumerate(best, 1)}

        def added(a, b, wa=1.0, wb=1.0, of=left):
            return {d: wa * a.get(d, 0) + wb * b.get(d, 0) for d in of}

        lists = {
            "bm25": words,
            "hybrid": added(scaled(dense), scaled(words), alpha, 1 - alpha),
            "rrf": added(ranks(dense), ranks(words)),
        }
        found = {kind: sorted(of, key=lambda d: (round(of[d], 6), d), reverse=True) for kind, of in lists.items()}
        first = sorted(lists["rrf"], key=lambda d: (-round(lists["rrf"][d], 9), ids.index(d)))
        judged = scorer("somewhere")([(text, made.corpus[d]) for d in first[:depth]])[:, 0]
        head = sorted(zip(judged, first[:depth], strict=True), reverse=True)
        found["reranked"] = [d for _, d in head] + first[depth:]
        for kind, order in found.items():
            tables[kind].append(measured(order, made.qrels[query]))
    return {kind: np.mean(rows, axis=0) for kind, rows in tables.items()}


@pytest.mark.parametrize(("alpha", "c", "depth"), [(0.5, 60, 5), (0.2, 3, 30)])
def test_every_task_equals_a_slow_search(made, alpha, c, depth):
    evaluator = Hybrid("test", made, alpha=alpha, c=c, depth=depth, reranker="somewhere", cross_encoder=scorer)
    result = evaluator(embed)
    expected = slow(made, alpha, c, depth)
    for kind, (mrr, ndcg) in expected.items():
        assert result.metrics[f"shapes-{kind}/mrr@10"] == pytest.approx(mrr, abs=1e-6), kind
        assert result.metrics[f"shapes-{kind}/ndcg@10"] == pytest.approx(ndcg, abs=1e-6), kind
    assert len({round(float(ndcg), 4) for _, ndcg in expected.values()}) == 4  # the tasks are told apart
    assert result.primary == "shapes-reranked/mrr@10"


def test_a_query_s_own_document_is_gone_before_rankings_are_put_together(made):
    queries = {f"d{i}": made.corpus[f"d{i}"] for i in range(0, 30, 3)} | {"far": "red star"}
    qrels = {query: {f"d{(5 * i + 6) % 30}": 1} for i, query in enumerate(queries)}
    itself = RetrievalSet("shapes", made.corpus, queries, qrels)
    found = {}
    for ignore in (True, False):
        options = {"depth": 5, "reranker": "somewhere", "cross_encoder": scorer, "ignore_identical_ids": ignore}
        result = Hybrid("test", itself, **options)(embed)
        for kind, (mrr, ndcg) in slow(itself, 0.5, 60, 5, ignore).items():
            assert result.metrics[f"shapes-{kind}/mrr@10"] == pytest.approx(mrr, abs=1e-6), kind
            assert result.metrics[f"shapes-{kind}/ndcg@10"] == pytest.approx(ndcg, abs=1e-6), kind
            assert result.protocol[f"shapes-{kind}"]["ignore_identical_ids"] is ignore
        found[ignore] = result.metrics["shapes-hybrid/mrr@10"]
    assert found[True] > found[False]


def test_alpha_at_its_ends_is_one_of_the_two(made):
    dense = Retrieval("test", made)(embed)
    ends = [Hybrid("test", made, alpha=alpha)(embed).metrics for alpha in (1.0, 0.0)]
    assert ends[0]["shapes-hybrid/mrr@10"] == pytest.approx(dense.metrics["shapes/mrr@10"])
    assert ends[1]["shapes-hybrid/recall@1"] == pytest.approx(ends[1]["shapes-bm25/recall@1"])


def test_one_table_beside_retrieval_with_a_row_a_query(made):
    calls = []

    def counted(texts, role, max_length=None, prompt=None):
        calls.append(len(texts))
        return embed(texts, role)

    result = score([Retrieval("test", made), Hybrid("test", made)], counted)
    tasks = ("shapes", "shapes-bm25", "shapes-hybrid", "shapes-rrf")
    assert [*dict.fromkeys(name.partition("/")[0] for name in result.metrics)] == [*tasks]
    assert result.primary == "shapes/mrr@10" and sum(calls) == len(made.corpus) + len(made.queries)
    for task in tasks:
        rows = result.items[task]
        assert rows["query"].tolist() == list(made.queries) and f"{task}-worst" in result.items
        assert rows["ndcg@10"].mean() == pytest.approx(result.metrics[f"{task}/ndcg@10"])
        assert result.protocol[task]["queries"] == 9
    assert len({str(stamp) for stamp in result.protocol.values()}) == 4
    nothing = result.items["shapes-bm25"].set_index("query").loc["far"]
    assert nothing["mrr@10"] == 0 and np.isnan(nothing["rank"])
    assert Hybrid("test", made).held() == {"shapes": list(made.queries.values())}


def test_what_a_cross_encoder_had_no_time_for(made, monkeypatch):
    monkeypatch.setattr("unitsphere.evaluation.cached.SLICE", 4)
    now, seen = [0.0], []

    def slowly(path):
        def scores(pairs):
            seen.append(len(pairs))
            now[0] += len(pairs)
            return scorer(path)(pairs)

        return scores

    hybrid = Hybrid("test", made, reranker="somewhere", cross_encoder=slowly)
    whole, part = (score([hybrid], embed, seconds, lambda: now[0]) for seconds in (None, 9))
    assert seen[1:] == [4, 4, 4]
    assert part.metrics == {name: value for name, value in whole.metrics.items() if "reranked" not in name}
    assert part.primary == whole.primary and unfinished(part, part.primary) == "shapes-reranked: 3 of 4 tasks"
    assert remarks(part, 9) == ["shapes-reranked: stopped after 9 s with 3 of 4 tasks"]
    enough = score([hybrid], embed, 1e9, lambda: now[0])
    assert enough.metrics == whole.metrics and max(seen[4:]) == 4


@pytest.mark.parametrize(
    ("change", "tasks"),
    [
        ({"k1": 1.2}, {"bm25", "hybrid", "rrf", "reranked"}),
        ({"stemmer": "english"}, {"bm25", "hybrid", "rrf", "reranked"}),
        ({"alpha": 0.3}, {"hybrid"}),
        ({"c": 10}, {"rrf", "reranked"}),
        ({"rerank_from": "hybrid"}, {"reranked"}),
        ({"reranker": "elsewhere"}, {"reranked"}),
        ({"cross_encoder": lambda path: Limited(64)}, {"reranked"}),
    ],
)
def test_a_stamp_has_all_that_its_task_depends_on(made, change, tasks):
    options = {"reranker": "somewhere", "cross_encoder": lambda path: Limited(128)}
    one, two = (Hybrid("test", made, **of)(embed).protocol for of in (options, options | change))
    assert {task.removeprefix("shapes-") for task in one if one[task] != two[task]} == tasks


class Limited:
    def __init__(self, max_length):
        self.max_length = max_length

    def __call__(self, pairs):
        return np.zeros((len(pairs), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"rerank_from": "nowhere"}, "dense, bm25, hybrid or rrf"),
        ({"depth": 0}, "1 to 100"),
        ({"stemmer": "klingon"}, "klingon"),
    ],
)
def test_wrong_settings_are_refused(made, options, message):
    with pytest.raises(UsageError, match=message):
        Hybrid("test", made, **options)(embed)
    with pytest.raises(UsageError, match="no test queries"):
        Hybrid("test", **{k: v for k, v in options.items() if k == "c"})


def test_a_reranker_is_read_when_the_evaluator_is_made(made, tmp_path):
    from unitsphere.encoders.cross_encoder import CrossEncoder

    with pytest.raises(UsageError, match="no cross-encoder"):
        Hybrid("test", made, reranker=str(tmp_path / "none"), cross_encoder=partial(CrossEncoder, max_length=64))
