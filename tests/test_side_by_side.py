"""Passes computed at the same time give what they give one after another."""

import threading

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from test_packed import SMALL
from unitsphere.embedder import Embedder
from unitsphere.encoders import side_by_side as module
from unitsphere.encoders.side_by_side import side_by_side
from unitsphere.encoders.tiny import tiny
from unitsphere.pooling.mean import FirstLastMeanPooling, MeanPooling


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def numbered(n):
    return [np.array([i]) for i in range(n)]


def test_passes_side_by_side_are_all_computed_without_gradients_and_share_the_threads(four_threads):
    seen = {}
    together = threading.Barrier(4, timeout=60)  # broken unless four are computed at a time

    def compute(some):
        if some[0]:
            together.wait()
        seen[int(some[0])] = torch.get_num_threads(), torch.is_grad_enabled()

    side_by_side(compute, numbered(9), nn.Linear(1, 1))
    assert seen == {0: (4, False)} | dict.fromkeys(range(1, 9), (1, False))
    assert torch.get_num_threads() == 4


def test_few_passes_are_computed_one_after_another_on_all_threads(four_threads):
    seen = []
    side_by_side(
        lambda some: seen.append((torch.get_num_threads(), torch.is_grad_enabled())), numbered(4), nn.Linear(1, 1)
    )
    assert seen == [(4, False)] * 4


@pytest.mark.parametrize(("threads", "several", "share"), [(4, 4, 1), (16, 16, 1), (24, 12, 2), (63, 15, 4)])
def test_threads_are_shared_with_few_left_over(threads, several, share, four_threads, monkeypatch):
    made = []

    class Pool(module.ThreadPoolExecutor):
        def __init__(self, count, **options):
            made.append((count, options["initargs"]))
            super().__init__(1)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    side_by_side(lambda some: None, numbered(200), nn.Linear(1, 1))
    assert made == [(several, (share,))]


def test_an_error_in_a_pass_ends_all(four_threads):
    seen = []

    def compute(some):
        seen.append(some)
        if some[0]:
            raise ValueError("of a pass")

    with pytest.raises(ValueError, match="of a pass"):
        side_by_side(compute, numbered(1000), nn.Linear(1, 1))
    assert len(seen) < 1000 and torch.get_num_threads() == 4


@pytest.mark.parametrize("pooling", [MeanPooling, FirstLastMeanPooling])
def test_vectors_side_by_side_are_those_of_one_pass_after_another(pooling, four_threads, monkeypatch):
    encoder = tiny(dropout=0.0)
    model = Embedder(encoder, pooling(encoder.dim))
    texts = [f"text {i} " + "word " * (i % 23) for i in range(200)]
    several = model.encode(texts, batch_tokens=64)
    with torch.inference_mode():
        np.testing.assert_array_equal(several, model.encode(texts, batch_tokens=64))
    monkeypatch.setattr(module, "AT_ONCE", 1)
    np.testing.assert_allclose(several, model.encode(texts, batch_tokens=64), atol=1e-6)


@pytest.mark.parametrize(("kind", "apart"), [("default", True), ("dynamic", False)])
def test_a_model_that_changes_its_positions_by_length_computes_one_pass_at_a_time(kind, apart, four_threads):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16}
    model = transformers.LlamaModel(transformers.LlamaConfig(**SMALL, rope_parameters=rope))
    seen = set()
    side_by_side(lambda some: seen.add(threading.get_ident()), numbered(50), model)
    assert (seen != {threading.get_ident()}) == apart
