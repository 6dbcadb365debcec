"""Vectors kept small: codes and maps against sentence-transformers, Faiss and their formulas; models that use them."""

import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from conftest import WORDS, composed
from making import model
from unitsphere import artefact
from unitsphere.build import build
from unitsphere.coded import Coded
from unitsphere.compression.step import Context, check_chain
from unitsphere.errors import UsageError
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.sts import STS
from unitsphere.search import codes
from unitsphere.search.codes import PQ, Binary, Float32, Int8
from unitsphere.types import RetrievalSet

TEXTS = [f"{a} {b} {i}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)]  # 400
PAIRS = list(zip(TEXTS[:200], TEXTS[200:], strict=True))


def unit(x):
    return np.stack([row / np.sqrt(sum(float(v) ** 2 for v in row)) for row in x]).astype(np.float32)


def some(n=600, dim=32, seed=0):
    """Unit vectors whose dimensions differ in mean and spread."""
    generator = np.random.default_rng(seed)
    return unit(generator.normal(size=(n, dim)) * np.linspace(0.2, 2, dim) + generator.normal(size=dim) * 0.3)


def context(folder=Path(), pairs=PAIRS, seed=1):
    return Context(pairs, None, folder, seed)


def compressed(*overrides, of=None, pairs=PAIRS):
    """A tiny model after the steps that the overrides describe."""
    steps = {name: build(node) for name, node in composed(*overrides).compression.items()}
    check_chain(steps)
    out = of or model(dropout=0)
    for step in steps.values():
        out = step.apply(out, context(pairs=pairs))
    return out


def test_int8_is_sentence_transformers_uint8_and_faiss_sq8():
    learned, z = some(), some(seed=1)
    code = Int8.fitted(learned)
    ranges = np.stack([learned.min(axis=0), learned.max(axis=0)])
    assert (code.encode(z) == quantize_embeddings(z, "uint8", ranges=ranges)).all() and code.bytes == 32
    theirs = faiss.IndexScalarQuantizer(32, faiss.ScalarQuantizer.QT_8bit)
    theirs.train(learned)
    differing = code.encode(z) != theirs.sa_encode(z)
    assert differing.mean() < 1e-3  # on the edge of a step, by the last digit of a float
    same = ~differing.any(axis=1)
    np.testing.assert_allclose(
        code.values(code.encode(z))[same], theirs.sa_decode(theirs.sa_encode(z))[same], atol=1e-5
    )
    inside = ((z >= ranges[0]) & (z <= ranges[1])).all(axis=1)
    assert 0.3 < inside.mean() < 1  # some are clipped
    step = (ranges[1] - ranges[0]) / 255
    assert (abs(code.values(code.encode(z)) - z)[inside] <= step / 2 + 1e-6).all()
    clipped = code.values(code.encode(z))
    assert (clipped >= ranges[0]).all() and (clipped <= ranges[1] + step / 2 + 1e-6).all()


def test_a_dimension_that_never_changes_keeps_its_value():
    z = some()
    z[:, 3] = 0.25
    code = Int8.fitted(z)
    assert (code.values(code.encode(z))[:, 3] == 0.25).all()


@pytest.mark.parametrize("dim", [32, 13])
def test_bits_are_sentence_transformers_ubinary_and_their_dot_product_is_hamming(dim):
    z = some(dim=dim)
    z[0, 2] = 0  # not above 0
    code = Binary(dim)
    bits = code.encode(z)
    assert (
        (bits == quantize_embeddings(z, "ubinary")).all()
        and bits.shape == (600, code.bytes)
        and code.bytes == -(-dim // 8)
    )
    back = code.decode(bits)
    assert (np.sign(back) == np.where(z > 0, 1, -1)).all() and back.dtype == np.float32
    hamming = [sum((a > 0) != (b > 0) for a, b in zip(z[0], z[j], strict=True)) for j in range(20)]
    np.testing.assert_allclose(back[:20] @ back[0], 1 - 2 * np.array(hamming) / dim, atol=1e-6)


def test_pq_is_the_nearest_centroid_of_each_part():
    z = some(dim=12)
    code = PQ.fitted(z, 3, seed=5)
    assert code.centroids.shape == (3, 256, 4) and code.bytes == 3 and code.dim == 12
    got = code.encode(z[:50])
    for row, numbers in zip(z, got, strict=False):
        for part in range(3):
            distances = ((code.centroids[part] - row[4 * part : 4 * part + 4]) ** 2).sum(axis=1)
            assert distances[numbers[part]] == pytest.approx(distances.min(), abs=1e-6)
    expected = np.concatenate([code.centroids[part][got[:, part]] for part in range(3)], axis=1)
    np.testing.assert_allclose(code.decode(got), unit(expected), atol=1e-6)
    assert (PQ.fitted(z, 3, seed=5).centroids == code.centroids).all()
    theirs = faiss.ProductQuantizer(12, 3, 8)
    theirs.train(z)
    error = [
        ((np.asarray(back) - z) ** 2).sum()
        for back in (code.values(code.encode(z)), theirs.decode(theirs.compute_codes(z)))
    ]
    assert error[0] < 1.1 * error[1]


@pytest.mark.parametrize(
    "code", [Float32(12), Int8.fitted(some(dim=12)), Binary(12), PQ.fitted(some(dim=12), 3)], ids=lambda c: c.name
)
def test_codes_of_no_and_of_one_vector_and_from_disk(code, tmp_path):
    z = some(dim=12)
    assert code.encode(z[:0]).shape == (0, code.bytes) and code.decode(code.encode(z[:0])).shape == (0, 12)
    assert code.encode(z[:1]).dtype == np.uint8 and (code.encode(z[:1]) == code.encode(z)[:1]).all()
    np.testing.assert_allclose(np.linalg.norm(code.decode(code.encode(z)), axis=1), 1, atol=1e-5)
    codes.write(code, tmp_path)
    again = codes.read(tmp_path)
    assert type(again) is type(code) and (again.encode(z) == code.encode(z)).all()
    assert (again.decode(code.encode(z)) == code.decode(code.encode(z))).all()
    assert (code.name == "float32") == (code.decode(code.encode(z)) == z).all()


def test_truncation_is_the_first_numbers_normalised():
    plain, small = model(dropout=0), compressed("compression=truncate", "compression.truncate.dim=5")
    for role in ("query", "document", "symmetric"):
        np.testing.assert_allclose(small.embed(TEXTS[:9], role), unit(plain.embed(TEXTS[:9], role)[:, :5]), atol=1e-6)
    assert small.dim == 5 and small.vector_bytes == 20 and plain.vector_bytes == 128


@pytest.mark.parametrize("center", [True, False])
def test_pca_projects_on_the_directions_of_most_variance(center):
    plain = model(dropout=0)
    small = compressed("compression=pca", "compression.pca.dim=4", f"compression.pca.center={center}")
    z = np.concatenate(
        [plain.embed([pair[0] for pair in PAIRS], "query"), plain.embed([pair[1] for pair in PAIRS], "document")]
    )
    mean = z.astype(float).mean(axis=0)
    _, _, directions = np.linalg.svd(z - mean, full_matrices=False)
    expected = unit((plain.embed(TEXTS[:50], "document") - mean * center) @ directions[:4].T)
    got = small.embed(TEXTS[:50], "document")
    np.testing.assert_allclose(abs(got), abs(expected), atol=1e-3)  # a direction has no sign
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-3)
    matrix = small.maps[0].matrix
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-5)


def test_pca_learns_from_as_many_texts_as_it_is_told():
    asked = []
    plain = model(dropout=0)
    encode = plain.encode
    plain.encode = lambda texts, *a, **k: asked.append(list(texts)) or encode(texts, *a, **k)
    compressed("compression=pca", "compression.pca.dim=4", "compression.pca.texts=30", of=plain)
    drawn = [text for texts in asked for text in texts]
    assert len(drawn) == len(set(drawn)) == 30 and set(drawn) <= set(TEXTS)


def test_a_random_rotation_of_full_width_keeps_every_cosine_and_a_narrow_one_is_orthonormal():
    z = model(dropout=0).embed(TEXTS[:30], "query")
    full = compressed("compression=random_rotation", "compression.random_rotation.dim=32").embed(TEXTS[:30], "query")
    np.testing.assert_allclose(full @ full.T, z @ z.T, atol=1e-5)
    assert abs(full - z).max() > 0.1
    narrow = compressed("compression=random_rotation", "compression.random_rotation.dim=6")
    matrix = narrow.maps[0].matrix
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(narrow.embed(TEXTS[:9], "query"), unit(z[:9] @ matrix), atol=1e-5)


def test_documents_are_what_their_codes_say_and_queries_are_not():
    plain, small = model(dropout=0), compressed("compression=[truncate,int8_vectors]", "compression.truncate.dim=16")
    z = unit(plain.embed(TEXTS[:40], "document")[:, :16])
    stored = small.encode_codes(TEXTS[:40], "document")
    assert stored.shape == (40, 16) and stored.dtype == np.uint8 and small.vector_bytes == 16
    for role in ("document", "symmetric"):
        assert (small.embed(TEXTS[:40], role) == small.code.decode(stored)).all()
    assert 0 < abs(small.embed(TEXTS[:40], "document") - z).max() < 0.02
    np.testing.assert_allclose(small.embed(TEXTS[:40], "query"), z, atol=1e-6)
    ranges = unit(plain.embed(TEXTS, "document")[:, :16])
    np.testing.assert_allclose(small.code.ranges, [ranges.min(axis=0), ranges.max(axis=0)], atol=1e-6)


@pytest.mark.parametrize("rescore", [True, False])
def test_retrieval_through_bits_is_that_of_sentence_transformers(rescore):
    """With rescoring of all documents, and without any."""
    documents, queries = TEXTS[:60], TEXTS[300:320]
    small = compressed("compression=binary_vectors", f"compression.binary_vectors.rescore={rescore}")
    plain = model(dropout=0)
    z, q = plain.embed(documents, "document"), plain.embed(queries, "query")
    found, _ = semantic_search_faiss(
        q if rescore else quantize_embeddings(q, "ubinary"), quantize_embeddings(z, "ubinary"), corpus_precision="ubinary",
        top_k=30 if rescore else 60, rescore=rescore, rescore_multiplier=2,
    )  # fmt: skip
    ours = small.embed(queries, "query") @ small.embed(documents, "document").T
    for scores, theirs in zip(ours, found, strict=True):
        assert np.all(np.diff(scores[[hit["corpus_id"] for hit in theirs]]) <= 1e-6)
        if not rescore:
            np.testing.assert_allclose(scores[[hit["corpus_id"] for hit in theirs]], [1 - hit["score"] / 16 for hit in theirs], atol=1e-5)  # fmt: skip
    qrels = {
        str(i): {str(row): 1 for row in np.flatnonzero(scores > scores.max() - 1e-5)} for i, scores in enumerate(ours)
    }
    corpus, asked = ({str(i): text for i, text in enumerate(texts)} for texts in (documents, queries))
    assert Retrieval("test", RetrievalSet("bits", corpus, asked, qrels))(small.embed).metrics["bits/mrr@10"] == 1
    assert Retrieval("test", RetrievalSet("bits", corpus, asked, qrels))(plain.embed).metrics["bits/mrr@10"] < 1


def test_sts_compares_two_codes(tmp_path):
    rows = [{"sentence1": TEXTS[i], "sentence2": TEXTS[(7 * i) % 400], "score": i % 5} for i in range(50)]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small, plain = compressed("compression=binary_vectors"), model(dropout=0)
    result = STS("test", {"made": "made.jsonl"}, {"simcse": {}}, {}, path=str(tmp_path))(small.embed)
    a, b = (plain.embed([row[side] for row in rows], "query") > 0 for side in ("sentence1", "sentence2"))
    expected = spearmanr(-(a != b).sum(axis=1), [row["score"] for row in rows]).statistic
    assert result.metrics["sts/made"] == pytest.approx(expected, abs=1e-9)


def test_symmetric_texts_have_the_querys_prompt():
    plain = model(dropout=0)
    plain.prompts |= {"query": "ask ", "document": "tell "}
    assert (plain.embed(["a"], "symmetric") == plain.embed(["a"], "query")).all()
    assert (plain.embed(["a"], "symmetric") != plain.embed(["a"], "document")).any()


@pytest.mark.parametrize(
    "chain",
    [
        "[truncate,int8_vectors]",
        "[pca,binary_vectors]",
        "[truncate,random_rotation,pq]",
        "[binary_vectors]",
        "[int8_vectors]",
        "[pca]",
    ],
)
def test_a_chain_is_saved_and_loaded_whole(chain, tmp_path):
    options = {"truncate": "dim=16", "pca": "dim=8", "random_rotation": "dim=12", "pq": "bytes=4"}
    names = chain.strip("[]").split(",")
    small = compressed(f"compression={chain}", *(f"compression.{n}.{o}" for n, o in options.items() if n in names))
    artefact.save(small, tmp_path / "run" / "model")
    again = artefact.load(tmp_path / "run")  # as a run's
    texts = ["", "one", "Grüße 合同 \U0001f600", "one", *TEXTS[:5]]
    for role in ("query", "document", "symmetric"):
        assert (again.embed(texts, role) == small.embed(texts, role)).all()
    assert (again.encode_codes(texts, "document") == small.encode_codes(texts, "document")).all()
    artefact.save(again, tmp_path / "copy")
    assert artefact.load(tmp_path / "copy").identity() == again.identity() and again.protocol() == small.protocol()
    assert again.vector_bytes == small.vector_bytes and again.dim == small.dim
    assert again.embed(texts, "query").shape == (9, small.dim) and again.embed([], "document").shape == (0, small.dim)
    assert not list(tmp_path.rglob("*.writing"))


def test_identity_and_protocol_are_those_of_maps_codes_and_model():
    plain = model(dropout=0)
    made = {
        "nothing": Coded(plain),
        "int8": compressed("compression=int8_vectors"),
        "int8 of other texts": compressed("compression=int8_vectors", pairs=PAIRS[:20]),
        "bits": compressed("compression=binary_vectors"),
        "bits of queries": compressed("compression=binary_vectors", "compression.binary_vectors.rescore=false"),
        "4 numbers": compressed("compression=truncate", "compression.truncate.dim=4"),
        "other model": compressed("compression=binary_vectors", of=model(dropout=0, seed=1)),
    }
    identities = {plain.identity(), *(small.identity() for small in made.values())}
    assert len(identities) == len(made) + 1
    assert made["4 numbers"].protocol()["vectors"] == ["truncate 4", "float32"]
    assert made["bits of queries"].protocol()["vectors"] == ["binary, queries too"]
    assert made["bits"].protocol()["pooling"] == "MeanPooling"


def test_what_is_read_is_counted():
    small = compressed("compression=binary_vectors")
    with small.counting() as read:
        small.embed(["a " * 300, "b"], "document")
    assert read == {("document", 128): (2, 1)} and small.read == read


@pytest.mark.parametrize(
    ("chain", "fits"),
    [
        ("[binary_vectors,pca]", r"\[pca,binary_vectors\]"),
        ("[pca,int8_vectors,truncate]", r"\[pca,truncate,int8_vectors\]"),
        ("[int8_vectors,pq]", "Choose one"),
        ("[pq,binary_vectors]", "Choose one"),
    ],
)
def test_nothing_follows_bytes(chain, fits):
    steps = {name: build(node) for name, node in composed(f"compression={chain}").compression.items()}
    with pytest.raises(UsageError, match=fits):
        check_chain(steps)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compression=truncate", "compression.truncate.dim=33"], "1 to 32"),
        (["compression=random_rotation", "compression.random_rotation.dim=0"], "1 to 32"),
        (["compression=pca", "compression.pca.texts=3", "compression.pca.dim=8"], "3 training texts"),
        (["compression=pq", "compression.pq.bytes=5"], "1, 2, 4, 8, 16, 32 would fit"),
        (["compression=pq", "compression.pq.bytes=4", "compression.pq.texts=255"], "256 or more"),
        (["compression=int8_vectors", "compression.int8_vectors.texts=0"], "0 training texts"),
    ],
)
def test_what_does_not_fit_is_said(overrides, said):
    with pytest.raises(UsageError, match=said):
        compressed(*overrides)


def test_what_is_coded_already_is_not_coded_again():
    small = compressed("compression=int8_vectors")
    for chain in ("pca", "binary_vectors", "int8_vectors"):
        with pytest.raises(UsageError, match="int8 already"):
            compressed(f"compression={chain}", *(["compression.pca.dim=4"] if chain == "pca" else []), of=small)
