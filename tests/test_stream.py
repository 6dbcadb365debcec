"""Texts without end are embedded block by block, as if all were there."""

import numpy as np
import pytest

from making import model as tiny_embedder
from unitsphere import model as of_model
from unitsphere.coded import Coded
from unitsphere.search.codes import Binary

TEXTS = ["red fish", "", "über 北京 🎉", "a long line of many words " * 20, "red fish", "old house", "b"]


@pytest.fixture
def blocks_of_three(monkeypatch):
    monkeypatch.setattr(of_model, "BLOCK", 3)


def test_a_stream_has_the_vectors_of_each_text_alone_in_order(blocks_of_three):
    embedder = tiny_embedder()
    parts = list(embedder.stream(text for text in TEXTS))
    assert [len(part) for part in parts] == [3, 3, 1]
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(np.concatenate(parts), alone, atol=1e-5)
    np.testing.assert_allclose(embedder.encode(TEXTS), alone, atol=1e-5)
    assert embedder.training


def test_a_stream_reads_no_further_than_a_block_ahead(blocks_of_three):
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield f"text {len(read)}"

    vectors = tiny_embedder().stream(endless())
    next(vectors)
    next(vectors)
    assert len(read) <= 9


def test_nothing_gives_nothing(blocks_of_three):
    embedder = tiny_embedder()
    assert list(embedder.stream([])) == []
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_prompts_lengths_and_counts_are_those_of_encode(blocks_of_three):
    embedder = tiny_embedder()
    embedder.prompts = {"query": "find: "}
    with embedder.counting() as read:
        parts = np.concatenate(list(embedder.stream(TEXTS, "query", max_length=12)))
    longer = sum(len(embedder.encoder.tokenize(["find: " + text])[0]) > 12 for text in TEXTS)
    assert read == {("query", 12): (7, longer)} and 0 < longer < 7
    np.testing.assert_allclose(parts, embedder.encode(TEXTS, "query", max_length=12), atol=1e-5)
    np.testing.assert_allclose(parts[0], embedder.encode(["find: red fish"], max_length=12)[0], atol=1e-5)


def test_vectors_in_codes_stream_as_they_are_encoded(blocks_of_three):
    coded = Coded.of(tiny_embedder()).stored_as(Binary(32))
    for role in ("query", "document"):
        streamed = np.concatenate(list(coded.stream(TEXTS, role)))
        np.testing.assert_allclose(streamed, coded.encode(TEXTS, role), atol=1e-6)
    assert len(np.unique(np.abs(streamed).round(5))) < len(np.unique(np.abs(coded.encode(TEXTS, "query")).round(5)))


def test_a_text_that_cannot_be_read_ends_the_stream_with_its_error(blocks_of_three):
    def broken():
        yield from TEXTS[:4]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        list(tiny_embedder().stream(broken()))
