"""Attention heads that are dropped in training: against the formula, head by head, and in every kind of model."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

from unitsphere.encoders.drop_head import DropHead, add_drop_head
from unitsphere.encoders.tiny import tiny
from unitsphere.encoders.transformer import transformer
from unitsphere.errors import UsageError

SIZE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZE, **NO_DROPOUT)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZE, **NO_DROPOUT)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=16, dropout=0.0, attention_dropout=0.0
        )
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZE, **NO_DROPOUT)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SIZE, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    ),
    "llama": lambda: LlamaModel(LlamaConfig(**SIZE, num_key_value_heads=2)),
    "qwen": lambda: Qwen3Model(Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=16)),
}
IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))


def states(model):
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def made(kind):
    torch.manual_seed(0)
    return MODELS[kind]()


@pytest.mark.parametrize("kind", MODELS)
def test_in_every_kind_of_model_training_changes_and_evaluation_does_not(kind):
    model = made(kind)
    plain = copy.deepcopy(model)
    add_drop_head(model, 0.5)
    hooked = [m for m in model.modules() if m._forward_pre_hooks]
    assert len(hooked) == 2 and all(isinstance(m, nn.Linear) and m.out_features == 32 for m in hooked)
    assert torch.equal(states(model.eval()), states(plain.eval()))
    torch.manual_seed(1)
    one, two = states(model.train()), states(model)
    assert not torch.allclose(one, states(plain.train())) and not torch.allclose(one, two)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])
def test_a_probability_of_zero_changes_nothing_not_even_what_is_random_later(kind):
    model, plain = made(kind).train(), made(kind).train()
    add_drop_head(model, 0.0)
    outputs = []
    for of in (model, plain):
        torch.manual_seed(2)
        outputs.append((states(of), torch.rand(3)))
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])


def test_the_formula_written_slowly():
    """Each text loses whole heads, the same at all of its tokens, and what is left is scaled by H / kept."""
    heads, width, p = 4, 3, 0.5
    projection = nn.Linear(heads * width, 5).train()
    x = torch.randn(6, 2, heads * width)
    torch.manual_seed(3)
    got = DropHead(heads, p)(projection, (x,))[0]
    torch.manual_seed(3)
    drawn = torch.rand(6, heads)
    for text in range(6):
        kept = [h for h in range(heads) if drawn[text, h] >= p]
        for token in range(2):
            for h in range(heads):
                head = x[text, token, h * width : (h + 1) * width]
                expected = head * heads / len(kept) if h in kept else torch.zeros(width)
                torch.testing.assert_close(got[text, token, h * width : (h + 1) * width], expected)
    assert len({tuple((drawn[text] >= p).tolist()) for text in range(6)}) > 1


def test_bert_with_heads_dropped_is_bert_with_their_weights_scaled():
    """An oracle without hooks: zero or scale the columns of the output projection that read each head."""
    model = made("bert").train()
    plain = copy.deepcopy(model)
    add_drop_head(model, 0.4)
    torch.manual_seed(5)
    got = states(model)
    torch.manual_seed(5)
    drawn = [torch.rand(3, 4) for _ in range(2)]  # a layer: text, head
    for text in range(3):
        scaled = copy.deepcopy(plain)
        for layer, u in zip(scaled.encoder.layer, drawn, strict=True):
            keep = (u[text] >= 0.4).float()
            factor = keep * 4 / keep.sum().clamp(min=1)
            layer.attention.output.dense.weight.data *= factor.repeat_interleave(8)
        torch.testing.assert_close(got[text], states(scaled)[text], atol=1e-5, rtol=1e-4)


def test_all_heads_dropped_leave_the_residual():
    x = torch.randn(2, 3, 8)
    torch.manual_seed(0)
    out = DropHead(4, 1 - 1e-9)(nn.Linear(8, 8).train(), (x,))[0]
    assert torch.equal(out, torch.zeros_like(x))


def test_dropped_heads_keep_the_mean():
    """Without the texts that lost all heads, E[output] is the input: rescaling undoes the dropping on average."""
    torch.manual_seed(0)
    out = DropHead(8, 0.2)(nn.Linear(8, 8).train(), (torch.ones(40000, 1, 8),))[0]
    torch.testing.assert_close(out.mean(dim=0), torch.ones(1, 8), atol=0.02, rtol=0)


def test_an_encoder_takes_it_and_says_what_does_not_fit(tmp_path):
    encoder = tiny()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    for lora in (None, {"r": 2}):
        model = transformer(str(tmp_path), drop_head=0.3, lora=lora).model
        assert sum(bool(m._forward_pre_hooks) for m in model.modules()) == 2
    with pytest.raises(UsageError, match=r"drop_head=1.0: a probability in \[0, 1\)"):
        transformer(str(tmp_path), drop_head=1.0)
    with pytest.raises(UsageError, match="no attention output projection was found in GPT2Model"):
        add_drop_head(GPT2Model(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4)), 0.1)
