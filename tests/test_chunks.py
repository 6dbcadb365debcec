"""Encoding a batch in length-sorted chunks is exact: same vectors, same loss, same gradients as the padded batch."""

import copy
import itertools

import numpy as np
import pytest
import torch

from making import CPU, passes
from unitsphere.embedder import Embedder
from unitsphere.encoders import reader
from unitsphere.encoders.reader import longest_first, pass_tokens
from unitsphere.encoders.tiny import tiny
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.simcse import SimCSE
from unitsphere.pooling.mean import MeanPooling
from unitsphere.training.chunks import LengthSorted, embeddings
from unitsphere.training.gradient_cache import GradientCache
from unitsphere.types import Batch, Text


def made(n=9):
    generator = np.random.default_rng(0)
    tokens = {
        c: [Text(generator.integers(5, 60, size=generator.integers(2, 40))) for _ in range(n)]
        for c in ("anchor", "positive")
    }
    tokens["negative"] = [Text(generator.integers(5, 60, size=k)) for k in (3, 30, 12)]
    ids = {c: torch.arange(len(t)) + 100 * i for i, (c, t) in enumerate(tokens.items())}
    return Batch(tokens, ids, torch.tensor([0, 0, 5]), torch.arange(n))


@pytest.mark.parametrize("loss", [InfoNCE(), SimCSE()])
@pytest.mark.parametrize(("chunks", "cache_tokens"), [(2, None), (4, None), (100, None), (1, 70), (1, 1)])
def test_chunks_change_nothing(chunks, cache_tokens, loss):
    encoder = tiny(dropout=0.0)
    whole = Embedder(encoder, MeanPooling(encoder.dim)).train()
    cut = copy.deepcopy(whole)
    outs = []
    for model, how in ((whole, passes(whole)), (cut, passes(cut, chunks, cache_tokens))):
        e = embeddings(model, made(), loss.views, how)
        total = loss(e).total
        total.backward()
        outs.append(
            (e.anchors[0], e.negatives, total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    (anchors, negatives, total, grads), (anchors2, negatives2, total2, grads2) = outs
    torch.testing.assert_close(anchors, anchors2, atol=1e-5, rtol=0)
    torch.testing.assert_close(negatives, negatives2, atol=1e-5, rtol=0)
    torch.testing.assert_close(total, total2, atol=1e-5, rtol=0)
    assert grads.keys() == grads2.keys() and grads
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, grads2[name], atol=1e-5, rtol=0, msg=name)


def test_the_two_views_of_an_anchor_have_their_own_dropout():
    encoder = tiny(dropout=0.1)
    model = Embedder(encoder, MeanPooling(encoder.dim)).train()
    first, second = embeddings(model, made(), 2, passes(model)).anchors
    assert (first - second).abs().amax(dim=1).min() > 1e-4
    model.eval()
    first, second = embeddings(model, made(), 2, passes(model)).anchors
    torch.testing.assert_close(first, second)


def test_vectors_come_back_in_the_order_given(embedder):
    sequences = made().tokens["anchor"]
    alone = torch.cat([passes(embedder)([s], embedder) for s in sequences])
    torch.testing.assert_close(passes(embedder, 4)(sequences, embedder), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [1, 20, 64, 10**6])
def test_passes_hold_every_sequence_once_longest_first_and_no_more_tokens_than_asked_for(tokens):
    lengths = np.random.default_rng(0).integers(1, 50, size=200)
    found = list(longest_first(lengths, tokens))
    assert sorted(np.concatenate(found)) == list(range(200))
    assert all(len(some) == 1 or len(some) * lengths[some].max() <= tokens for some in found)
    for some, behind in itertools.pairwise(found):  # none is left out that had fitted
        assert lengths[some].min() >= lengths[behind].max() and (len(some) + 1) * lengths[some].max() > tokens
    assert list(longest_first([], tokens)) == []


def test_the_caches_gradients_of_tensors_that_share_one_are_their_own(embedder):
    """The gradients of p and of q in p + q are one tensor, which is added up for each."""
    texts, rows = made().tokens["anchor"], torch.randn(9, 3, requires_grad=True)
    p, q = (torch.randn(3, requires_grad=True) for _ in range(2))
    cache = GradientCache(embedder.encoder.pad, 40, CPU, [p, q])
    z = cache(texts, lambda tokens, x: x * (p + q), rows)
    weights = torch.arange(27.0).view(9, 3)
    (z * weights).sum().backward()
    torch.testing.assert_close(z, rows * (p + q))
    torch.testing.assert_close(rows.grad, weights * (p + q))
    for one in (p, q):
        torch.testing.assert_close(one.grad, (weights * rows).sum(dim=0))


def test_the_cache_gives_what_reads_nothing_trained_no_gradient(embedder):
    p = torch.randn(3, requires_grad=True)
    cache = GradientCache(embedder.encoder.pad, 40, CPU, [p])
    z = cache(made().tokens["anchor"], embedder.requires_grad_(False))
    (z.sum() + p.sum()).backward()
    assert torch.equal(p.grad, torch.ones(3))


def test_the_cache_computes_without_gradient_first_and_again_for_the_gradient_alone(embedder):
    seen = []

    def function(tokens):
        seen.append(torch.is_grad_enabled())
        return embedder(tokens)

    embedder.train()
    z = passes(embedder, cache_tokens=40)(made().tokens["anchor"], function)
    first = len(seen)
    assert first > 1 and not any(seen)
    with torch.no_grad():
        assert not passes(embedder, cache_tokens=40)(made().tokens["anchor"], function).requires_grad
    state = torch.get_rng_state()
    z.sum().backward()
    assert seen[2 * first :] == [True] * first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cache_has_the_gradient_of_passes_that_are_kept_in_mixed_precision(dtype, monkeypatch):
    encoder = tiny(dropout=0.1)
    models = [Embedder(encoder, MeanPooling(encoder.dim)).train()]
    models.append(copy.deepcopy(models[0]))
    for model in models:
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype, cache_enabled=False):  # as Lightning has it
            loss = InfoNCE()(embeddings(model, made(), 1, passes(model, cache_tokens=70))).total
        (loss * 2**10).backward()
        monkeypatch.setattr(GradientCache, "compute", LengthSorted.compute)
    cached, kept = (torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in models)
    assert float((cached - kept).norm() / kept.norm()) < 2e-3


@pytest.mark.parametrize("amx", [False, True])
def test_a_pass_is_as_large_as_device_and_numbers_want_it(amx, monkeypatch):
    monkeypatch.setattr(reader, "AMX", amx)
    wide, narrow = torch.float32, torch.bfloat16
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [pass_tokens(cpu, wide), pass_tokens(cpu, narrow), pass_tokens(gpu, wide)] == [1024, 1024 * (1 + amx), 16384]
    encoder = tiny()
    model = Embedder(encoder, MeanPooling(encoder.dim))
    assert model.pass_tokens == 1024 and model.bfloat16().pass_tokens == 1024 * (1 + amx)
