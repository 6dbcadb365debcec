"""Every pooler against its formula written out token by token, against sentence-transformers, and under padding."""

import pytest
import torch

from unitsphere.pooling.attention import AttentionPooling
from unitsphere.pooling.cls import CLSMLPPooling, CLSPooling
from unitsphere.pooling.last_token import LastTokenPooling
from unitsphere.pooling.max import MaxPooling, MeanMaxPooling
from unitsphere.pooling.mean import FirstLastMeanPooling, MeanPooling, WeightedMeanPooling
from unitsphere.types import TokenStates

D = 6
POOLERS = [
    CLSPooling, CLSMLPPooling, MeanPooling, MaxPooling, MeanMaxPooling, WeightedMeanPooling, AttentionPooling,
    LastTokenPooling, FirstLastMeanPooling,
]  # fmt: skip


def slow(pooler, tokens, layers):
    """The formula over one text's own tokens (T, D), without any padding."""
    first, final = layers[1], tokens
    match pooler:
        case CLSPooling():
            return final[0]
        case CLSMLPPooling():
            return torch.tanh(pooler.dense.weight @ final[0] + pooler.dense.bias)
        case MeanPooling():
            return sum(final) / len(final)
        case MaxPooling():
            return torch.stack([max(final[:, d]) for d in range(D)])
        case MeanMaxPooling():
            return torch.cat([final.max(dim=0).values, sum(final) / len(final)])
        case WeightedMeanPooling():
            return sum((t + 1) * h for t, h in enumerate(final)) / sum(range(1, len(final) + 1))
        case AttentionPooling():
            scores = [float(pooler.query @ torch.tanh(pooler.key.weight @ h)) for h in final]
            weights = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
            return sum(w * h for w, h in zip(weights, final, strict=True))
        case LastTokenPooling():
            return final[-1]
        case FirstLastMeanPooling():
            return sum((a + b) / 2 for a, b in zip(first, final, strict=True)) / len(final)


def padded(texts, side, garbage=7.0):
    width = max(map(len, texts))
    hidden, mask = torch.full((len(texts), width, D), garbage), torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        hidden[i, where], mask[i, where] = text, 1
    return hidden, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", POOLERS)
def test_equals_the_formula_whatever_the_padding(kind, side):
    torch.manual_seed(0)
    pooler = kind(D)
    if kind is AttentionPooling:
        torch.nn.init.normal_(pooler.query)
        torch.nn.init.normal_(pooler.key.weight)
    layers = [[torch.randn(n, D) for n in (5, 1, 3)] for _ in range(3)]
    stacked = [padded(texts, side) for texts in layers]
    states = TokenStates(stacked[-1][0], stacked[-1][1], tuple(hidden for hidden, _ in stacked))
    with torch.no_grad():
        out = pooler(states)
        expected = [slow(pooler, layers[-1][i], [texts[i] for texts in layers]) for i in range(3)]
    assert out.shape == (3, pooler.dim)
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [k for k in POOLERS if k.sentence_transformers])
def test_equals_sentence_transformers(kind):
    module = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason="a dev dependency")
    torch.manual_seed(1)
    hidden, mask = padded([torch.randn(n, D) for n in (4, 2)], "right")
    theirs = module.Pooling(D, pooling_mode=kind.sentence_transformers)
    expected = theirs({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(kind(D)(TokenStates(hidden, mask)), expected)


def test_mlp_is_left_out_of_evaluation_only_where_asked():
    states = TokenStates(torch.randn(2, 3, D), torch.ones(2, 3, dtype=torch.long))
    for train_only in (True, False):
        pooler = CLSMLPPooling(D, train_only=train_only)
        raw, through = states.hidden[:, 0], torch.tanh(pooler.dense(states.hidden[:, 0]))
        assert torch.equal(pooler.train()(states), through)
        assert torch.equal(pooler.eval()(states), raw if train_only else through)


def test_attention_starts_at_the_mean():
    states = TokenStates(torch.randn(2, 4, D), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    torch.testing.assert_close(AttentionPooling(D)(states), MeanPooling(D)(states))
