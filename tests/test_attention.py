"""Attention in tiles is attention: against its formula in float64, and against torch's."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from test_linear import ALL
from test_packed import FITTING, padded
from unitsphere.encoders import attention as tiled
from unitsphere.encoders.attention import NAME, attend, attend_fast, attention, in_tiles, tiles
from unitsphere.encoders.tiny import tiny

SEEN = {
    "everywhere": None,
    "tokens": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5], dtype=torch.bool)[:, None, None],
    "pairs": torch.ones(6, 6, dtype=torch.bool).tril(2).triu(-2).expand(3, 1, 6, 6),
}


def slowly(q, k, v, mask, scale, kept=1.0):
    """The formula, text by text and head by head."""
    rows = []
    for b in range(len(q)):
        for h in range(q.shape[1]):
            scores = scale * torch.einsum("id,jd->ij", q[b, h], k[b, h])
            if mask is not None:
                scores = scores + torch.where(mask[b, 0], 0.0, -torch.inf)
            weights = scores.softmax(dim=1) * (kept if isinstance(kept, float) else kept[b, h])
            rows.append(weights @ v[b, h])
    return torch.stack(rows).view(*q.shape[:-1], v.shape[-1])


def random(*shape):
    torch.manual_seed(0)
    return (x.requires_grad_() for x in torch.randn(4, *shape, dtype=torch.float64))


@pytest.mark.parametrize("short", [5, 6])  # the longest text whose weights are kept; these have 6 tokens
@pytest.mark.parametrize("heads", [1, 2, 4, 9])  # whose weights a tile holds: 9 are those of two texts
@pytest.mark.parametrize("seen", SEEN)
def test_vectors_and_gradients_are_those_of_the_formula(seen, heads, short, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", heads * 36)
    monkeypatch.setattr(tiled, "SHORT", short)
    q, k, v, gradient = random(3, 4, 6, 8)
    made, exact = attend(q, k, v, SEEN[seen], 0.0, None), slowly(q, k, v, SEEN[seen], 8**-0.5)
    torch.testing.assert_close(made, exact)
    for mine, theirs in zip(*(torch.autograd.grad(x, (q, k, v), gradient) for x in (made, exact)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("short", [5, 6])
@pytest.mark.parametrize("heads", [1, 4, 9])
@pytest.mark.parametrize("seen", SEEN)
def test_with_dropout_they_are_those_of_the_formula_with_the_mask_that_was_drawn(seen, heads, short, monkeypatch):
    monkeypatch.setattr(tiled, "TILE", heads * 36)
    monkeypatch.setattr(tiled, "SHORT", short)
    q, k, v, gradient = random(3, 4, 6, 6)

    def drawn(v):
        torch.manual_seed(5)
        return attend(q, k, v, SEEN[seen], 0.25, 0.4)

    weights = drawn(torch.eye(6, dtype=torch.float64).expand(3, 4, 6, 6))  # of which the values are the columns
    kept = (weights != 0) / 0.75
    made, exact = drawn(v), slowly(q, k, v, SEEN[seen], 0.4, kept)
    assert 0.05 < ((kept == 0) & (SEEN[seen] if SEEN[seen] is not None else True)).double().mean() < 0.5
    torch.testing.assert_close(made, exact)
    for mine, theirs in zip(*(torch.autograd.grad(x, (q, k, v), gradient) for x in (made, exact)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_leaves_the_mean_as_it_is():
    q, k, v, _ = (x.detach() for x in random(2, 4, 6, 8))
    mask = SEEN["tokens"][:2]
    draws = torch.stack([attend(q, k, v, mask, 0.2, None) for _ in range(4000)])
    off = (draws.mean(0) - attend(q, k, v, mask, 0.0, None)) / (draws.std(0) / 4000**0.5)
    assert off.abs().max() < 5


@pytest.mark.parametrize("length", [1, 2, 16, 200, 700, 1500])
def test_tiles_are_every_head_once_and_small(length):
    q = torch.zeros(5, 12, length, 2)
    seen = torch.zeros(5, 12)
    for tile in tiles(q):
        seen[tile] += 1
        assert q[tile].is_contiguous()
        assert seen[tile].numel() * length**2 <= max(tiled.TILE, 2 * length**2)
    assert (seen == 1).all()


def test_nothing_of_the_size_of_the_weights_is_kept_of_longer_texts():
    q, k, v = torch.randn(3, 2, 4, 300, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend(q, k, v, torch.ones(2, 1, 1, 300, dtype=torch.bool), 0.1, None).sum().backward()
    assert kept and max(kept) <= q.numel()


def test_autocast_changes_nothing_within():
    q, k, v = torch.randn(3, 2, 4, 9, 8).bfloat16()
    usual = attend(q, k, v, None, 0.0, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(q, k, v, None, 0.0, None), usual)


@pytest.mark.skipif(not tiled.BF16, reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("case", ["plain", "masked", "causal", "module", "grouped", "long", "alone", "added"])
def test_attention_in_bfloat16_is_as_near_to_the_formula_as_torchs(case, amx, monkeypatch):
    torch.manual_seed(0)
    length = 1100 if case == "long" else 9
    q, k, v = torch.randn(3, 2, 4, length, 8)
    if case == "grouped":
        k, v = k[:, :2], v[:, :2]
    mask = (torch.arange(length) < torch.tensor([[length], [4]]))[:, None, None] if case == "masked" else None
    if case == "alone":  # no key that a query may see: nothing is asked of it but to be a number
        mask = torch.zeros(2, 1, 1, length, dtype=torch.bool)
    if case == "added":  # to the scores, which transformers' eager masks are
        mask = torch.zeros(2, 1, length, length)
        mask[1, :, :, 4:] = -1e4
    module = nn.Module().eval()
    module.is_causal, module.num_key_value_groups = case == "module", 2 if case == "grouped" else 1
    causal = {"causal": {"is_causal": True}, "module": {"is_causal": None}}.get(case, {})
    exact = F.scaled_dot_product_attention(
        q.double(),
        k.double(),
        v.double(),
        mask if mask is None or mask.dtype == torch.bool else mask.double(),
        is_causal=bool(causal),
        scale=0.3,
        **({"enable_gqa": True} if case == "grouped" else {}),
    ).transpose(1, 2)
    taken = []
    monkeypatch.setattr(tiled, "AMX", amx)
    monkeypatch.setattr(tiled, "attend", lambda *x: taken.append(1) or attend(*x))
    given = mask.bfloat16() if case == "added" else mask
    with torch.no_grad():
        seen, _ = attention(module, q.bfloat16(), k.bfloat16(), v.bfloat16(), given, scaling=0.3, **causal)
    assert bool(taken) == (case in ("plain", "masked", "long", "alone") and not amx)
    assert seen.dtype == torch.bfloat16 and seen.isfinite().all()
    if case != "alone":
        torch.testing.assert_close(seen.double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_is_for_bfloat16_and_for_dropout_on_a_cpu(bf16, amx, monkeypatch):
    monkeypatch.setattr(tiled, "BF16", bf16)
    monkeypatch.setattr(tiled, "AMX", amx)
    q = torch.ones(1, 1, 1, 1)
    for training in (False, True):
        assert not in_tiles(q, 0.0, training) and in_tiles(q, 0.1, training)
        assert not in_tiles(q.half(), 0.1, training) and not in_tiles(q.to("meta"), 0.1, training)
        assert in_tiles(q.bfloat16(), 0.1, training) == bf16
        assert in_tiles(q.bfloat16(), 0.0, training) == (bf16 and (training or not amx))


@pytest.mark.parametrize("kind", ALL)
def test_padded_training_with_dropout_attends_so(kind, monkeypatch):
    """Of models whose attention is transformers' interface; with a mask that keeps everything, it is what it was."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(copy.deepcopy(ALL[kind])).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-9  # which is rounded to none
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 1e-9
    quick = copy.deepcopy(model)
    attend_fast(quick)
    tokens, taken = padded(model.config.pad_token_id or 0), []
    monkeypatch.setattr(tiled, "attend", lambda *x: taken.append(1) or attend(*x))
    made, exact = (
        m(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state[tokens.mask.bool()]
        for m in (quick, model)
    )
    torch.testing.assert_close(made, exact, atol=2e-6, rtol=1e-5)
    assert bool(taken) == (kind not in {"mpnet", "deberta", "llama", "falcon"})


def test_an_encoder_attends_so_and_saves_nothing_of_it(tmp_path):
    encoder = tiny()
    assert encoder.model.config._attn_implementation == NAME
    encoder.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    eager = transformers.BertModel._from_config(copy.deepcopy(FITTING["bert"]), attn_implementation="eager")
    attend_fast(eager)
    assert eager.config._attn_implementation == "eager"  # who has asked for one keeps it
