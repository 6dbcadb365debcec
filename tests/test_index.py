"""Indexes of vectors against Faiss, sentence-transformers and full sorts; on disk and back; under an evaluation."""

import faiss
import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from conftest import WORDS, composed
from making import model
from unitsphere.build import build
from unitsphere.errors import UsageError
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.search.binary import Binary
from unitsphere.search.codes import PQ, Float32, Int8
from unitsphere.search.codes import Binary as Bits
from unitsphere.search.dense import Approximate, search, unit
from unitsphere.search.vectors import VectorFile
from unitsphere.types import RetrievalSet


def some(n, dim=48, seed=0):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(20, dim))
    return unit(centres[generator.integers(20, size=n)] + 0.7 * generator.normal(size=(n, dim))).astype(np.float32)


def index(option, **settings):
    """As `unitsphere mine` builds it."""
    node = composed(f"index@source.dense.index={option}", root="mine").source.dense.index
    return build({**node, **settings})


@pytest.mark.parametrize("dim", [48, 45])
@pytest.mark.parametrize("rescore", [1, 3, 100])
def test_bits_with_rescoring_are_sentence_transformers(dim, rescore):
    documents, queries = some(300, dim), some(20, dim, seed=1)
    ours = index("binary", rescore=rescore)
    ours.build(documents)
    scores, rows = ours.search(queries, 10)
    theirs, _ = semantic_search_faiss(
        queries,
        quantize_embeddings(documents, "ubinary"),
        corpus_precision="ubinary",
        top_k=10,
        rescore_multiplier=rescore,
    )
    signs = np.where(documents > 0, 1, -1) / np.sqrt(dim)
    expected = np.array(
        [[q @ signs[hit["corpus_id"]] for hit in hits] for q, hits in zip(queries, theirs, strict=True)]
    )
    if rescore == 100:
        assert rows.tolist() == np.argsort(-(queries @ signs.T), axis=1, kind="stable")[:, :10].tolist()
    agreement = np.mean(
        [len({h["corpus_id"] for h in hits} & {*of}) / 10 for hits, of in zip(theirs, rows, strict=True)]
    )
    assert agreement > 0.9  # of documents at the same distance either may be a candidate
    np.testing.assert_allclose(scores[:, 0], expected.max(axis=1), atol=0.02)
    np.testing.assert_allclose(scores, [q @ signs[of].T for q, of in zip(queries, rows, strict=True)], atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all() and scores.dtype == np.float32 and rows.dtype == np.int64


@pytest.mark.parametrize("dim", [48, 45])
def test_bits_without_rescoring_are_hamming_distances(dim):
    documents, queries = some(300, dim), some(20, dim, seed=1)
    ours = index("binary", rescore=0)
    ours.build(documents)
    scores, rows = ours.search(queries, 10)
    hamming = (queries[:, None] > 0) != (documents[None] > 0)
    distance = hamming.sum(axis=2)
    np.testing.assert_allclose(scores, 1 - 2 * np.sort(distance, axis=1)[:, :10] / dim, atol=1e-6)
    np.testing.assert_allclose(scores, 1 - 2 * np.take_along_axis(distance, rows, 1) / dim, atol=1e-6)
    assert all(len(set(of)) == 10 for of in rows.tolist())


def test_bytes_are_those_of_faiss():
    documents, queries = some(300), some(20, seed=1)
    eight = index("int8")
    eight.build(documents)
    scores, rows = eight.search(queries, 10)
    code = Int8.fitted(documents)
    expected = queries @ code.values(code.encode(documents)).T
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :10], atol=2e-3)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, 1), atol=2e-3)
    theirs = faiss.IndexScalarQuantizer(48, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    theirs.train(documents)
    theirs.add(documents)
    assert (theirs.search(queries, 10)[1] == rows).all()


@pytest.mark.parametrize(("option", "settings"), [("pq", {}), ("ivf_pq", {"nprobe": 1000}), ("ivf", {}), ("hnsw", {})])
def test_faiss_indexes_find_most_neighbours(option, settings):
    documents, queries = some(1200), some(40, seed=1)
    approximate = index(option, **settings)
    approximate.build(documents)
    _, rows = approximate.search(queries, 10)
    _, exact = search(queries, documents, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]) > 0.8


@pytest.mark.parametrize("option", ["exact", "hnsw", "ivf", "binary", "int8", "pq", "ivf_pq"])
def test_an_index_from_disk_finds_the_same(option, tmp_path):
    documents, queries = VectorFile.written(tmp_path / "vectors", [some(500)]), some(7, seed=1)
    built, again = index(option), index(option)
    built.build(documents)
    built.write(tmp_path)
    again.read(tmp_path, VectorFile(tmp_path / "vectors", Float32(48)))
    for a, b in zip(built.search(queries, 10), again.search(queries, 10), strict=True):
        assert (a == b).all()
    assert built.name == again.name and built.search(queries[:1], 10)[1].shape == (1, 10)


@pytest.mark.parametrize("option", ["exact", "hnsw", "ivf", "binary", "int8"])
def test_one_document_and_more_asked_for_than_there_are(option):
    one = index(option)
    one.build(some(1))
    scores, rows = one.search(some(2), 3)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == -1).all() and (scores[:, 1:] == -np.inf).all()


@pytest.mark.parametrize("code", [Bits(48), Int8.fitted(some(300)), PQ.fitted(some(300), 6)], ids=lambda c: c.name)
def test_vectors_on_disk_in_a_code_come_out_as_it_says(code, tmp_path):
    z = some(100)
    file = VectorFile.written(tmp_path / "v", [z[:33], z[33:]], code)
    expected = code.decode(code.encode(z))
    assert file.shape == (100, 48) and (tmp_path / "v").stat().st_size == 100 * code.bytes
    assert (file.read(30, 40) == expected[30:40]).all() and file.read(95, 999).shape == (5, 48)
    assert (file.take(np.array([99, 3, 99])) == expected[[99, 3, 99]]).all() and file.take(np.array([], int)).shape == (
        0,
        48,
    )
    exact = index("exact")
    exact.build(file)
    scores, _ = exact.search(some(5, seed=1), 7)
    np.testing.assert_allclose(scores, -np.sort(-(some(5, seed=1) @ expected.T), axis=1)[:, :7], atol=1e-5)


@pytest.mark.parametrize(
    ("option", "n", "dim", "said"),
    [
        ("pq", 100, 48, "100 vectors of 48 numbers"),
        ("pq", 300, 50, "300 vectors of 50 numbers"),
        ("ivf_pq", 300, 50, "PQ48"),
    ],
)
def test_what_faiss_cannot_index_is_said(option, n, dim, said):
    with pytest.raises(UsageError, match=said):
        index(option).build(some(n, dim))


def test_settings_that_make_no_sense():
    with pytest.raises(UsageError, match="0, which leaves it out, or more"):
        Binary(-1)
    made = Approximate("IVF{lists},Flat", nprobe=3)
    made.build(some(200))
    assert made.name == "IVF5,Flat, nprobe 3"
    with pytest.raises(UsageError, match="Flot"):
        Approximate("Flot").build(some(5))


def retrieval(*overrides):
    texts = [f"{a} {b}" for a in WORDS for b in WORDS]
    corpus = {f"d{i}": text for i, text in enumerate(texts)}
    of = RetrievalSet("words", corpus, {f"q{i}": f"a {text}" for i, text in enumerate(texts[::9])}, {
        f"q{i}": {f"d{9 * i}": 1} for i in range(len(texts[::9]))
    })  # fmt: skip
    return build(composed("eval=retrieval", *overrides, root="eval").eval.retrieval, split="test", own=of)


def test_an_evaluation_searches_with_the_index_that_it_names():
    embed = model(dropout=0).embed
    exact, default = retrieval()(embed), Retrieval("test", retrieval().set)(embed)
    assert exact.metrics == default.metrics and exact.protocol["words"] == default.protocol["words"]
    assert exact.protocol["words"]["search"] == "exact, 100 deep"
    bits = retrieval("index@eval.retrieval.index=binary", "eval.retrieval.index.rescore=0")(embed)
    assert bits.protocol["words"]["search"] == "bits, rescore 0, 100 deep"
    assert bits.metrics["words/ndcg@10"] < exact.metrics["words/ndcg@10"]
    signs = Retrieval("test", retrieval().set)(lambda *asked: np.where(embed(*asked) > 0, 1, -1).astype(np.float32))
    assert bits.metrics["words/ndcg@10"] == pytest.approx(signs.metrics["words/ndcg@10"], abs=1e-6)
    graph = retrieval("index@eval.retrieval.index=hnsw")(embed)
    assert graph.protocol["words"]["search"] == "HNSW32,Flat, efSearch 128, 100 deep"
    assert graph.metrics["words/recall@10"] == pytest.approx(exact.metrics["words/recall@10"], abs=0.05)


def test_exact_search_is_on_the_gpu_where_faiss_has_one(monkeypatch):
    """There is none here: what would be called is stood in for by the same on the CPU."""
    documents, queries, calls = some(300), some(20, seed=1), []
    expected = search(queries, documents, 5)

    def knn_gpu(resources, xq, xb, k, metric):
        calls.append(resources)
        return faiss.knn(xq, xb, k, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    found = search(queries, documents, 5)
    assert calls == ["resources"]
    np.testing.assert_array_equal(found[1], expected[1])
    search(queries, some(3000), 2500)  # more than Faiss finds there
    assert calls == ["resources"]


def test_every_list_has_enough_to_learn_from():
    documents = some(4000)
    made = index("ivf_pq", factory="IVF{lists},PQ8np", train_rows=10)
    made.build(documents)  # Faiss refuses fewer vectors than lists
    assert made.search(documents[:3], 1)[1].shape == (3, 1)
