"""A batch computed without its padding is the padded batch: same states, same vectors, same gradients."""

import copy

import pytest
import torch
import transformers

from making import passes
from test_chunks import made
from unitsphere.embedder import Embedder
from unitsphere.encoders.drop_head import add_drop_head
from unitsphere.encoders.packed import Apart, Joined, can_be_packed, filled, groups, packed
from unitsphere.encoders.tiny import tiny
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.simcse import SimCSE
from unitsphere.pooling.cls import CLSPooling
from unitsphere.pooling.mean import FirstLastMeanPooling, MeanPooling
from unitsphere.training.chunks import embeddings
from unitsphere.types import Tokens

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FITTING = {
    "bert": transformers.BertConfig(**SMALL),
    "roberta": transformers.RobertaConfig(**SMALL, pad_token_id=1),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL, pad_token_id=1),
    "electra": transformers.ElectraConfig(**SMALL, embedding_size=16),
    "albert": transformers.AlbertConfig(**SMALL, embedding_size=16),
    "distilbert": transformers.DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
}
UNFIT = {
    "mpnet": transformers.MPNetConfig(**SMALL),
    "deberta": transformers.DebertaV2Config(**SMALL),
    "llama": transformers.LlamaConfig(**SMALL),
    "modernbert": transformers.ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
}


def padded(pad=0, lengths=(2, 7, 7, 3, 12, 1)):
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 60, mask.shape, generator=generator)
    return Tokens(torch.where(mask.bool(), ids, pad), mask, torch.zeros(len(lengths), dtype=torch.long))


def test_a_row_that_is_filled_up_has_the_states_and_the_gradients_of_the_padded_batch():
    assert [filled(n) for n in (33, 161, 1000, 1900)] == [33, 164, 1008, 1920]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(FITTING["bert"]).eval()
    tokens = padded(lengths=(2, 7, 7, 3, 12, 1) * 5 + (1,))
    there, gradients = tokens.mask.bool(), []
    weights = torch.randn(int(there.sum()), 32)
    for hidden in (
        packed(model, tokens, 3).hidden,
        model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state,
    ):
        (hidden[there] * weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FITTING)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_all_states_are_those_of_the_padded_batch(kind, count):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(FITTING[kind]).eval()
    assert can_be_packed(model)
    tokens = padded(model.config.pad_token_id)
    usual = model(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True)
    mine = packed(model, tokens, count, layers=True)
    there = tokens.mask.bool()
    assert len(mine.layers) == len(usual.hidden_states)
    for a, b in zip((mine.hidden, *mine.layers), (usual.last_hidden_state, *usual.hidden_states), strict=True):
        torch.testing.assert_close(a[there], b[there], atol=1e-5, rtol=0)
        assert (a[~there] == 0).all()


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_would_give_something_else_is_left_padded(kind):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(UNFIT[kind])
    attention = model.config._attn_implementation
    assert not can_be_packed(model)
    assert model.training and model.config._attn_implementation == attention


def test_heads_that_share_keys_are_left_padded():
    shared = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    assert not can_be_packed(transformers.LlamaModel(shared))


def test_what_is_not_a_number_in_one_text_is_not_in_another():
    torch.manual_seed(0)
    model = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    tokens = padded()
    tokens.ids[tokens.ids == 59] = 58
    tokens.ids[0] = 59
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[59] = torch.nan
    finite = packed(model, tokens, 3).hidden.isfinite().all(dim=2).all(dim=1)
    assert finite.tolist() == [False] + [True] * 5


def test_what_acts_on_whole_texts_in_training_is_left_padded():
    dropped, checkpointed = tiny(), tiny()
    add_drop_head(dropped.model, 0.5)
    checkpointed.model.gradient_checkpointing_enable()
    for encoder in (dropped, checkpointed):
        encoder.pack(4)
        assert encoder.groups is None


@pytest.mark.parametrize("loss", [InfoNCE(), SimCSE()])
@pytest.mark.parametrize("pooling", [MeanPooling, CLSPooling, FirstLastMeanPooling])
@pytest.mark.parametrize("cache_tokens", [None, 70])
def test_vectors_loss_and_gradients_are_those_of_the_padded_batch(loss, pooling, cache_tokens):
    encoder = tiny(dropout=0.0)
    whole = Embedder(encoder, pooling(encoder.dim)).train()
    bare = copy.deepcopy(whole)
    bare.encoder.pack(3)
    assert bare.encoder.groups == 3
    outs = []
    for model, how in ((whole, passes(whole)), (bare, passes(bare, 1, cache_tokens))):
        e = embeddings(model, made(), loss.views, how)
        total = loss(e).total
        total.backward()
        outs.append((e.anchors[0], total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (anchors, total, gradients), (anchors2, total2, gradients2) = outs
    torch.testing.assert_close(anchors, anchors2, atol=1e-5, rtol=0)
    torch.testing.assert_close(total, total2, atol=1e-5, rtol=0)
    assert gradients.keys() == gradients2.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients2[name], atol=1e-5, rtol=0, msg=name)


def test_views_have_their_own_dropout_and_evaluation_has_none():
    encoder = tiny(dropout=0.1)
    model = Embedder(encoder, MeanPooling(encoder.dim)).train()
    usual = model.encode(["a", "some words"])
    model.encoder.pack(2)
    first, second = embeddings(model, made(), 2, passes(model)).anchors
    assert (first - second).abs().amax(dim=1).min() > 1e-4
    assert (model.encode(["a", "some words"]) == usual).all()


def test_groups_cover_every_token_once_and_a_rectangle_has_no_mask():
    mask = padded(lengths=(2, 2, 3, 5, 5)).mask
    found = groups(mask, 2)
    assert [g.token.tolist() for g in found] == [[[0, 1, 0], [2, 3, 2], [4, 5, 6]], [[*range(7, 12)], [*range(12, 17)]]]
    assert [g.place.tolist() for g in found] == [[0, 1, 3, 4, 6, 7, 8], [*range(10)]]
    assert [g.hollow.tolist() for g in found] == [[2, 5], []]
    assert found[0].mask is not None and found[1].mask is None
    x = torch.randn(17, 2, 3)
    rectangles = [g.rectangle(heads=2) for g in found]
    parts = Apart.apply(x, rectangles)
    for text, (begin, end) in enumerate([(0, 2), (2, 4), (4, 7), (7, 12), (12, 17)]):
        for head in range(2):
            mine = parts[text // 3][text % 3, head, : end - begin]
            assert torch.equal(mine, x[begin:end, head])
    assert torch.equal(Joined.apply(17, rectangles, *parts), x)
    longer = Joined.apply(20, rectangles, *parts)
    assert torch.equal(longer[:17], x) and not longer[17:].any()
