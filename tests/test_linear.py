"""Linear maps by other kernels give what the network gives, and its gradients."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

from test_packed import FITTING, SMALL, UNFIT, padded
from unitsphere.encoders import attention, linear
from unitsphere.encoders.attention import attend, attend_fast
from unitsphere.encoders.fake_quant import FakeQuantLinear, add_fake_quant
from unitsphere.encoders.linear import Intermediate, Linear, computed_here, infers, multiply_fast

ALL = FITTING | UNFIT | {"falcon": transformers.FalconConfig(**SMALL)}
DTYPES = [torch.float32, torch.bfloat16] if linear.BF16 else [torch.float32]
fast = pytest.mark.skipif(linear.LINEAR is None, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def another_maker(monkeypatch):
    """These tests are of what training in float32 on an Intel processor leaves to MKL."""
    monkeypatch.setattr(linear, "MKL", False)


def states(model, tokens):
    out = model(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=False)  # as an encoder asks
    return out.last_hidden_state[tokens.mask.bool()]


@fast
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ALL)
def test_states_are_those_of_transformers(kind, dtype, amx, monkeypatch):
    torch.manual_seed(0)
    exact = transformers.AutoModel.from_config(copy.deepcopy(ALL[kind])).eval()
    quick = copy.deepcopy(exact).to(dtype)
    attend_fast(quick)
    multiply_fast(quick)
    tokens, taken = padded(exact.config.pad_token_id or 0), []
    monkeypatch.setattr(attention, "AMX", amx)
    monkeypatch.setattr(attention, "attend", lambda *x: taken.append(1) or attend(*x))
    near = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    with torch.no_grad():
        torch.testing.assert_close(states(quick, tokens).float(), states(exact, tokens), **near)
    kinds = {type(m) for m in quick.modules()}
    assert (Linear in kinds) == (kind != "falcon")  # which has a class of its own
    assert (Intermediate in kinds) == (kind in {"bert", "roberta", "xlm-roberta", "electra", "mpnet", "deberta"})
    own = {"mpnet", "deberta", "llama", "falcon"}  # attentions, or causal ones
    assert bool(taken) == (dtype == torch.bfloat16 and not amx and kind not in own)


@fast
def test_hooks_on_the_parts_of_a_block_are_called():
    torch.manual_seed(0)
    model = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    multiply_fast(model)
    block, x, called = model.encoder.layer[0].intermediate, torch.randn(3, 32), []
    with torch.no_grad():
        alone = block(x)
        block.dense.register_forward_hook(lambda *given: called.append("dense"))
        block.intermediate_act_fn.register_forward_pre_hook(lambda *given: called.append("act"))
        torch.testing.assert_close(block(x), alone)
    assert called == ["dense", "act"]


@fast
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_only_the_gelu_that_the_operator_computes_is_taken_into_it(name):
    torch.manual_seed(0)
    config = copy.deepcopy(FITTING["bert"])
    config.hidden_act = name
    model = transformers.BertModel(config).eval()
    multiply_fast(model)
    block = model.encoder.layer[0].intermediate
    x = torch.randn(3, 5, 32)
    slowly = x.double() @ block.dense.weight.double().T + block.dense.bias.double()
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), ACT2FN[name](slowly), atol=1e-6, rtol=1e-5)
    assert isinstance(block, Intermediate) == (name == "gelu")


@fast
@pytest.mark.parametrize("kind", FITTING)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_transformers(kind, frozen):
    torch.manual_seed(0)
    plain = transformers.AutoModel.from_config(copy.deepcopy(FITTING[kind])).double().eval()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = not frozen or "bias" in name
    quick = copy.deepcopy(plain).float()
    multiply_fast(quick)
    tokens, taken = padded(plain.config.pad_token_id), []
    out = states(quick, tokens)
    todo = [out.grad_fn]
    while todo:
        node = todo.pop()
        taken.append(node.name())
        todo += [after for after, _ in node.next_functions if after is not None and after not in todo]
    assert any("Product" in name for name in taken) and not any("Addmm" in name for name in taken)
    out.pow(3).mean().backward()
    states(plain, tokens).pow(3).mean().backward()
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(b.grad.double(), a.grad, atol=1e-6 * float(a.grad.abs().max()) + 1e-9, rtol=1e-4)
    assert plain.state_dict().keys() == quick.state_dict().keys()


@fast
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_products_gradients_are_those_of_its_formula(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4, bias), torch.randn(shape, requires_grad=True)
    torch.autograd.backward(layer(x), out := torch.randn(*shape[:-1], 4))
    expected = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    slow = out.reshape(-1, 4).T @ x.detach().reshape(-1, 5)
    torch.testing.assert_close(expected[1], slow)
    x.grad = layer.weight.grad = None
    if bias:
        layer.bias.grad = None
    layer.__class__ = Linear
    torch.autograd.backward(layer(x), out)
    for a, b in zip([x.grad, *(parameter.grad for parameter in layer.parameters())], expected, strict=True):
        torch.testing.assert_close(a, b)


@fast
@pytest.mark.parametrize("frozen", ["weight", "x"])
def test_a_product_keeps_what_its_gradients_need(frozen):
    layer, x, kept = nn.Linear(5, 4), torch.randn(7, 5, requires_grad=frozen != "x"), []
    layer.__class__ = Linear
    layer.weight.requires_grad = frozen != "weight"
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x).sum().backward()
    assert kept == ([(4, 5)] if frozen == "weight" else [(7, 5)])


@fast
def test_what_does_not_fit_is_told_of_by_torch():
    layer = nn.Linear(5, 4)
    layer.__class__ = Linear
    for x, what in ((torch.ones(2, 6), "shapes cannot be multiplied"), (torch.ones(2, 5).bfloat16(), "same dtype")):
        with pytest.raises(RuntimeError, match=what):
            layer(x)


def test_it_is_for_inference_in_float32_or_bfloat16_alone():
    x = torch.ones(2, 2)
    assert not infers(x)  # a gradient may be wanted
    with torch.no_grad():
        assert infers(x) and not infers(x.double()) and not infers(x.to("meta"))
        assert infers(x.bfloat16()) == linear.BF16
        with torch.autocast("cpu", torch.bfloat16):
            assert not infers(x)
    with torch.inference_mode():
        assert infers(x)


@pytest.mark.parametrize("mkl", [False, True])
def test_training_in_float32_is_for_another_processor_than_intels(mkl, monkeypatch):
    monkeypatch.setattr(linear, "MKL", mkl)
    x = torch.ones(2, 2)
    assert computed_here(x) == (not mkl) and computed_here(x.bfloat16()) == linear.BF16
    with torch.no_grad():
        assert computed_here(x)


def test_what_rounds_stays_what_it_is():
    torch.manual_seed(0)
    plain = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    add_fake_quant(plain)
    for order in ((multiply_fast, add_fake_quant), (add_fake_quant, multiply_fast)):
        model = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
        model.load_state_dict(plain.state_dict())
        for change in order:
            change(model)
        assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {FakeQuantLinear}
        with torch.no_grad():
            torch.testing.assert_close(states(model, padded()), states(plain, padded()))
