"""Inference by other kernels gives what the network gives."""

import copy
import threading

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from test_packed import FITTING, SMALL, UNFIT, padded
from unitsphere.embedder import Embedder
from unitsphere.encoders import inference
from unitsphere.encoders.fake_quant import FakeQuantLinear, add_fake_quant
from unitsphere.encoders.inference import Intermediate, Linear, attention, infer_fast, infers, side_by_side
from unitsphere.encoders.packed import written_out
from unitsphere.encoders.tiny import tiny
from unitsphere.pooling.mean import FirstLastMeanPooling, MeanPooling

ALL = FITTING | UNFIT | {"falcon": transformers.FalconConfig(**SMALL)}
DTYPES = [torch.float32, torch.bfloat16] if inference.BF16 else [torch.float32]
fast = pytest.mark.skipif(inference.LINEAR is None, reason="this torch has no oneDNN")


def states(model, tokens):
    return model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state[tokens.mask.bool()]


@fast
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ALL)
def test_states_are_those_of_transformers(kind, dtype, monkeypatch):
    torch.manual_seed(0)
    exact = transformers.AutoModel.from_config(copy.deepcopy(ALL[kind])).eval()
    quick = copy.deepcopy(exact).to(dtype)
    infer_fast(quick)
    tokens = padded(exact.config.pad_token_id or 0)
    taken = []
    monkeypatch.setattr(inference, "written_out", lambda *x: taken.append(1) or written_out(*x))
    near = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    with torch.no_grad():
        torch.testing.assert_close(states(quick, tokens).float(), states(exact, tokens), **near)
    kinds = {type(m) for m in quick.modules()}
    assert (Linear in kinds) == (kind != "falcon")  # which has a class of its own
    assert (Intermediate in kinds) == (kind in {"bert", "roberta", "xlm-roberta", "electra", "mpnet", "deberta"})
    assert bool(taken) == (
        dtype == torch.bfloat16 and kind not in {"mpnet", "deberta", "llama", "falcon", "modernbert"}
    )


@fast
def test_hooks_on_the_parts_of_a_block_are_called():
    torch.manual_seed(0)
    model = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    infer_fast(model)
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
    infer_fast(model)
    block = model.encoder.layer[0].intermediate
    x = torch.randn(3, 5, 32)
    slowly = x.double() @ block.dense.weight.double().T + block.dense.bias.double()
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), ACT2FN[name](slowly), atol=1e-6, rtol=1e-5)
    assert isinstance(block, Intermediate) == (name == "gelu")


@fast
def test_gradients_and_training_are_untouched():
    torch.manual_seed(0)
    plain = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    quick = copy.deepcopy(plain)
    infer_fast(quick)
    tokens = padded()
    for model in (plain, quick):
        states(model, tokens).square().mean().backward()
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    assert plain.state_dict().keys() == quick.state_dict().keys()


def test_it_is_for_inference_in_float32_or_bfloat16_alone():
    x = torch.ones(2, 2)
    assert not infers(x)  # a gradient may be wanted
    with torch.no_grad():
        assert infers(x) and not infers(x.double()) and not infers(x.to("meta"))
        assert infers(x.bfloat16()) == inference.BF16
        with torch.autocast("cpu", torch.bfloat16):
            assert not infers(x)
    with torch.inference_mode():
        assert infers(x)


def test_what_rounds_stays_what_it_is():
    torch.manual_seed(0)
    plain = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
    add_fake_quant(plain)
    for order in ((infer_fast, add_fake_quant), (add_fake_quant, infer_fast)):
        model = transformers.BertModel(copy.deepcopy(FITTING["bert"])).eval()
        model.load_state_dict(plain.state_dict())
        for change in order:
            change(model)
        assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {FakeQuantLinear}
        with torch.no_grad():
            torch.testing.assert_close(states(model, padded()), states(plain, padded()))


def test_an_encoder_infers_so_and_saves_nothing_of_it(tmp_path):
    encoder = tiny()
    assert encoder.model.config._attn_implementation == inference.ATTENTION
    encoder.model.save_pretrained(tmp_path)
    assert inference.ATTENTION not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    eager = transformers.BertModel._from_config(copy.deepcopy(FITTING["bert"]), attn_implementation="eager")
    infer_fast(eager)
    assert eager.config._attn_implementation == "eager"  # who has asked for one keeps it


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_its_formula(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8)  # B, H, T, D
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2], dtype=torch.bool)[:, None, None] if masked else None
    scores = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double())
    if masked:
        scores = scores + torch.where(mask, 0.0, -torch.inf)
    slowly = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v.double())
    torch.testing.assert_close(written_out(q, k, v, mask, 0.0, 1.0).double(), slowly, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not inference.BF16, reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize(
    "case", ["plain", "masked", "causal", "module", "grouped", "long", "alone", "added", "dropped"]
)
def test_attention_in_bfloat16_is_as_near_to_the_formula_as_torchs(case, monkeypatch):
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
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = case == "module", 2 if case == "grouped" else 1
    causal = {"causal": {"is_causal": True}, "module": {"is_causal": None}}.get(case, {})
    wide = {"enable_gqa": True} if case == "grouped" else {}
    exact = F.scaled_dot_product_attention(
        q.double(),
        k.double(),
        v.double(),
        mask if mask is None or mask.dtype == torch.bool else mask.double(),
        is_causal=bool(causal),
        scale=0.3,
        **wide,
    ).transpose(1, 2)
    taken = []
    monkeypatch.setattr(inference, "written_out", lambda *x: taken.append(1) or written_out(*x))
    given = mask.bfloat16() if case == "added" else mask
    p = 0.5 if case == "dropped" else 0.0
    with torch.no_grad():
        seen, _ = attention(module, q.bfloat16(), k.bfloat16(), v.bfloat16(), given, scaling=0.3, dropout=p, **causal)
    assert bool(taken) == (case in ("plain", "masked", "alone"))
    assert seen.dtype == torch.bfloat16 and seen.isfinite().all()
    if case not in ("alone", "dropped"):
        torch.testing.assert_close(seen.double(), exact, atol=0.02, rtol=0.02)


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

    class Pool(inference.ThreadPoolExecutor):
        def __init__(self, count, **options):
            made.append((count, options["initargs"]))
            super().__init__(1)

    monkeypatch.setattr(inference, "ThreadPoolExecutor", Pool)
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
    monkeypatch.setattr(inference, "AT_ONCE", 1)
    np.testing.assert_allclose(several, model.encode(texts, batch_tokens=64), atol=1e-6)


@pytest.mark.parametrize(("kind", "apart"), [("default", True), ("dynamic", False)])
def test_a_model_that_changes_its_positions_by_length_computes_one_pass_at_a_time(kind, apart, four_threads):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16}
    model = transformers.LlamaModel(transformers.LlamaConfig(**SMALL, rope_parameters=rope))
    seen = set()
    side_by_side(lambda some: seen.add(threading.get_ident()), numbered(50), model)
    assert (seen != {threading.get_ident()}) == apart
