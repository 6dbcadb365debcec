"""BM25, fusion and reranking against their formulas written slowly."""

import math
from itertools import pairwise

import numpy as np
import pytest

from unitsphere.errors import UsageError
from unitsphere.formats import words as preparation
from unitsphere.search import fusion
from unitsphere.search.bm25 import BM25
from unitsphere.search.rerank import rerank

DOCUMENTS = [
    "The cat sat on the mat.",
    "A dog and a cat",
    "dogs, dogs; DOGS!",
    "搜索引擎很快",
    "The cat sat on the mat.",
    "搜 cat 引擎",
    "",
    "unit-sphere 2024 搜索",
]
WORDS = [
    ["the", "cat", "sat", "on", "the", "mat"],
    ["a", "dog", "and", "a", "cat"],
    ["dogs", "dogs", "dogs"],
    ["搜索", "索引", "引擎", "擎很", "很快"],
    ["the", "cat", "sat", "on", "the", "mat"],
    ["搜", "cat", "引擎"],
    [],
    ["unit", "sphere", "2024", "搜索"],
]
QUERIES = {
    "the cat": ["the", "cat"],
    "cat cat dog": ["cat", "cat", "dog"],
    "搜索引擎": ["搜索", "索引", "引擎"],
    "搜": ["搜"],
    "Sphere unheard": ["sphere", "unheard"],
    "nothing": ["nothing"],
    "": [],
}


def bm25(query, words, k1, b):
    """Lucene's formula, a document at a time."""
    n, mean = len(words), sum(map(len, words)) / len(words)
    out = []
    for document in words:
        total = 0.0
        for word in query:
            df, tf = sum(word in other for other in words), document.count(word)
            idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean)) if tf else 0.0
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0)])
def test_bm25_equals_the_formula_in_two_scripts(k1, b):
    index = BM25(DOCUMENTS, k1=k1, b=b)
    assert [index.words(text) for text in DOCUMENTS] == WORDS
    for query, words in QUERIES.items():
        np.testing.assert_allclose(index.scores(query), bm25(words, WORDS, k1, b), atol=1e-5, err_msg=query)


@pytest.mark.parametrize("k", [1, 3, 8, 50])
def test_bm25_search_is_a_full_sort_with_ties_by_row(k):
    index = BM25(DOCUMENTS)
    scores, rows = index.search(list(QUERIES), k)
    assert scores.shape == rows.shape == (len(QUERIES), min(k, 8))
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    for query, got_scores, got in zip(QUERIES, scores, rows, strict=True):
        full = index.scores(query)
        expected = [row for row in sorted(range(8), key=lambda row: (-full[row], row)) if full[row] > 0][:k]
        missing = min(k, 8) - len(expected)
        assert got.tolist() == expected + [-1] * missing
        np.testing.assert_allclose(got_scores, [*full[expected], *[-np.inf] * missing])
    assert rows[0, 0] == 0 and (k == 1 or rows[0, 1] == 4)  # the two equal documents


def test_words_keep_their_vowel_signs_and_unspaced_alphabets_are_paired():
    index = BM25(["हिन्दी किताब", "ภาษาไทย", "ಕನ್ನಡ ಭಾಷೆ"])
    assert index.words("हिन्दी किताब, नयी।") == ["हिन्दी", "किताब", "नयी"]
    assert index.words("ภาษา") == ["ภา", "าษ", "ษา"]
    assert index.search(["किताब", "ไทย", "ಭಾಷೆ"], 1)[1].tolist() == [[0], [1], [2]]


def test_bm25_stems_and_refuses():
    assert BM25(DOCUMENTS, stemmer="english").search(["dog"], 3)[1].tolist() == [[2, 1, -1]]
    with pytest.raises(UsageError, match="english"):
        BM25(DOCUMENTS, stemmer="klingon")
    with pytest.raises(UsageError, match="no documents"):
        BM25([])
    assert BM25(["", "?"]).search(["a"], 2)[1].tolist() == [[-1, -1]]


def some_rankings(count=3, queries=5, k=6, documents=9):
    """Rankings with equal scores, shared and missing documents; one query has none in the second."""
    rng = np.random.default_rng(0)
    out = []
    for number in range(count):
        scores = -np.sort(-rng.integers(0, 5, (queries, k)).astype(np.float32), axis=1)
        rows = np.stack([rng.permutation(documents)[:k] for _ in range(queries)])
        lacking = rng.integers(0, 3, queries)
        if number == 1:
            lacking[2] = k
        for q, missing in enumerate(lacking):
            rows[q, k - missing :], scores[q, k - missing :] = -1, -np.inf
        out.append((scores, rows))
    return out


def expected_fusion(parts, k):
    """From query -> list of (document, addend) to scores and rows."""
    scores, rows = [], []
    for part in parts:
        total = {}
        for document, value in part:
            total[document] = total.get(document, 0.0) + value
        best = sorted(total, key=lambda d: (-round(total[d], 9), d))[:k]
        rows.append(best + [-1] * (k - len(best)))
        scores.append([total[d] for d in best] + [-math.inf] * (k - len(best)))
    return np.array(scores), np.array(rows)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_reciprocal_ranks_equal_the_formula(k):
    rankings = some_rankings()
    parts = [
        [(int(d), 1 / (10 + rank)) for _, rows in rankings for rank, d in enumerate(rows[q], start=1) if d >= 0]
        for q in range(5)
    ]
    scores, rows = fusion.reciprocal_rank(rankings, k, c=10)
    expected = expected_fusion(parts, k)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("k", [1, 4, 12])
def test_weighted_fusion_equals_the_formula(k):
    rankings, weights = some_rankings(), (0.5, 0.3, 0.2)
    parts = []
    for q in range(5):
        part = []
        for (scores, rows), weight in zip(rankings, weights, strict=True):
            there = [(int(d), float(s)) for d, s in zip(rows[q], scores[q], strict=True) if d >= 0]
            low, high = min((s for _, s in there), default=0), max((s for _, s in there), default=0)
            part += [(d, weight * ((s - low) / (high - low) if high > low else 1.0)) for d, s in there]
        parts.append(part)
    scores, rows = fusion.weighted(rankings, weights, k)
    expected = expected_fusion(parts, k)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-6)
    for q in range(5):  # sums of thirds may differ in the last digit, so ties are compared as sets
        for value in np.unique(scores[q].round(5)):
            at = scores[q].round(5) == value
            if value > scores[q].min().round(5):
                assert {*rows[q, at]} == {*expected[1][q, at]}


@pytest.mark.parametrize("depth", [1, 4, 6, 20])
def test_reranking_is_a_sort_of_the_first_ones(depth):
    queries, documents = [f"q{i}" for i in range(5)], [f"d{i}" for i in range(9)]
    ranking = some_rankings()[1]
    asked = []

    def score(pairs):
        asked.extend(pairs)
        return np.array([[(int(q[1]) * 7 + int(d[1]) * 5) % 4] for q, d in pairs], np.float32)

    scores, rows = rerank(queries, documents, ranking, score, depth)
    for q in range(5):
        before = [int(d) for d in ranking[1][q] if d >= 0]
        first = sorted(before[:depth], key=lambda d: -((q * 7 + d * 5) % 4))
        assert rows[q].tolist() == first + before[depth:] + [-1] * (6 - len(before))
        known = scores[q][rows[q] >= 0]
        assert all(a >= b for a, b in pairwise(known)) and np.isfinite(known).all()
        assert all(a > b for a, b in pairwise(known[len(first) - 1 :]))
        assert [pair for pair in asked if pair[0] == queries[q]] == [(queries[q], documents[d]) for d in before[:depth]]
    assert scores.dtype == np.float32


def test_preparation_and_search_agree_on_which_scripts_have_no_spaces():
    for text in ("大熊猫", "人々", "ひらがな", "𠮷野家", "ﾊﾛｰ"):
        assert preparation.words(text) == list(text) and BM25(["x"]).words(text) == [a + b for a, b in pairwise(text)]
    assert preparation.words("한국어 문서") == ["한국어", "문서"] and BM25(["x"]).words("한국어") == ["한국", "국어"]
