"""Numbers in fewer bits: each kind against its formula written slowly, and what ONNX Runtime makes of it."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf
from onnx import TensorProto, helper, numpy_helper
from scipy import stats

from unitsphere import artefact, paths
from unitsphere.compression.calibration import BINS, Entropy, Histogram, MinMax, Percentile, calibrate
from unitsphere.compression.half import Half
from unitsphere.compression.int4 import Int4, grouped, packed_pairs
from unitsphere.compression.int8 import Int8Dynamic, Int8Static
from unitsphere.compression.magnitude import PruneMagnitude
from unitsphere.compression.onnx import Onnx
from unitsphere.compression.products import products, read, symmetric
from unitsphere.compression.step import Context, check_chain
from unitsphere.embedder import Embedder
from unitsphere.encoders.fake_quant import FakeQuantLinear, add_fake_quant, rounded_activation, rounded_weight
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.graph import GraphModel, int8_overflows, session

TEXTS = ["sort an array", "a", "", "naïve 中文 🙂", "a rather longer text " * 20]
PAIRS = [(f"query number {i} of many", f"document {i * i} with {i} words " * (i % 5 + 1)) for i in range(40)]


def model(seed: int = 0) -> Embedder:
    encoder = tiny(dim=64, seed=seed)
    return artefact.assemble(
        encoder,
        {"_target_": "unitsphere.pooling.mean.MeanPooling"},
        {"_target_": "unitsphere.embedder.Embedder", "prompts": {"query": "find: "}},
    ).eval()


def context(tmp_path, pairs=PAIRS) -> Context:
    return Context(pairs, 64, tmp_path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> GraphModel:
    made = Onnx().apply(model(), Context([], None, tmp_path_factory.mktemp("graph")))
    assert isinstance(made, GraphModel)
    return made


def test_a_graph_gives_the_models_vectors(graph):
    ours, theirs = model().encode(TEXTS, role="query"), graph.encode(TEXTS, role="query")
    assert np.abs(ours - theirs).max() < 1e-5
    assert graph.protocol()["precision"] == "float32 (onnx)"


def test_a_graph_is_saved_and_loaded_whole(graph, tmp_path):
    artefact.save(graph, tmp_path / "model")
    loaded = artefact.load(tmp_path / "model")
    assert np.array_equal(loaded.encode(TEXTS), graph.encode(TEXTS))
    assert loaded.identity() == graph.identity()
    assert (loaded.prompts, loaded.dim, loaded.normalize) == (graph.prompts, 64, True)


def test_symmetric_rounding_is_its_formula():
    w = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    codes, scale = symmetric(w, bits=8)
    for j in range(3):
        s = max(abs(float(x)) for x in w[:, j]) / 127
        assert scale[j] == pytest.approx(s, rel=1e-6)
        assert [int(c) for c in codes[:, j]] == [round(float(x) / s) for x in w[:, j]]
    assert np.abs(symmetric(w, bits=7)[0]).max() == 63
    assert symmetric(w, bits=8, per_channel=False)[1].shape == ()
    assert not symmetric(np.zeros((2, 2), np.float32), bits=8)[0].any()


def one_product(weight: np.ndarray, bias: np.ndarray | None) -> onnx.ModelProto:
    """x (2, 3, K) @ w [+ b], as a graph of its own."""
    k, n = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if bias is None else "z"])]
    constants = [numpy_helper.from_array(weight, "w")]
    if bias is not None:
        nodes.append(helper.make_node("Add", ["b", "z"], ["y"]))
        constants.append(numpy_helper.from_array(bias, "b"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, k])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, n])
    of = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(of, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(proto: onnx.ModelProto, x: np.ndarray, by: Any = session) -> np.ndarray:
    return by(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def exact_session(*given: Any, **options: Any) -> Any:
    """As on a processor where sums would overflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unitsphere.graph.int8_overflows", lambda processor: True)
        return session(*given, **options)


def test_sums_overflow_on_x86_without_vnni():
    x86, plain = {"architecture": "x86_64"}, {"avx512_vnni": False, "avx_vnni": False}
    assert int8_overflows(x86) and int8_overflows(x86 | plain | {"avx512_f": True})
    assert not int8_overflows(x86 | plain | {"avx512_vnni": True})
    assert not int8_overflows(x86 | plain | {"avx_vnni": True})
    assert not int8_overflows({"architecture": "aarch64"})
    assert int8_overflows({})  # of a torch that does not tell
    assert torch.cpu.get_capabilities()["architecture"]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    ("bits", "by"), [(8, session), (7, session), (8, exact_session), (7, onnxruntime.InferenceSession)]
)
def test_an_int8_product_is_its_formula(with_bias, static, bits, by):
    """Also on processors without VNNI, 7 bits by any runtime."""
    from unitsphere.compression.products import replace

    draw = np.random.default_rng(1)
    w, b = draw.normal(size=(16, 5)).astype(np.float32), draw.normal(size=5).astype(np.float32)
    x = draw.normal(size=(2, 3, 16)).astype(np.float32)
    low, high = float(min(x.min(), 0)), float(max(x.max(), 0))
    step = Int8Static(MinMax(), weight_bits=bits) if static else Int8Dynamic(weight_bits=bits)
    if static:
        low, high = low / 2, high * 0.7  # so that something is cut off
        step.ranges = {"x": (low, high)}
    proto = one_product(w, b if with_bias else None)
    replace(proto, step.product)
    assert not any(node.op_type in ("MatMul", "Add") for node in proto.graph.node)

    scale = (high - low) / 255
    zero = round(-low / scale)
    expected = np.zeros((2, 3, 5))
    for i, j, n in np.ndindex(2, 3, 5):
        s_w = max(abs(float(v)) for v in w[:, n]) / (2 ** (bits - 1) - 1)
        total = 0
        for k in range(16):
            q_x = min(max(round(float(x[i, j, k]) / scale) + zero, 0), 255)
            total += (q_x - zero) * round(float(w[k, n]) / s_w)
        expected[i, j, n] = scale * s_w * total + (b[n] if with_bias else 0)
    got = run(proto, x, by)
    assert np.abs(got - expected).max() < 2e-2 * np.abs(expected).max()  # a tie may round the other way
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9999


def test_int4_groups_are_their_formula_and_what_onnx_runtime_reads():
    from unitsphere.compression.products import replace

    draw = np.random.default_rng(2)
    w = draw.normal(size=(40, 6)).astype(np.float32)  # the last group of 16 is half full
    codes, scales, zeros = grouped(w, 16)
    assert (codes.shape, scales.shape, zeros.shape) == ((6, 3, 16), (6, 3), (6, 3))
    back = np.zeros_like(w)
    for k, n in np.ndindex(40, 6):
        group = w[k // 16 * 16 : k // 16 * 16 + 16, n]
        low, high = min(float(group.min()), 0), max(float(group.max()), 0)
        if k // 16 == 2:
            low, high = min(low, 0), max(high, 0)
        s = (high - low) / 15
        z = round(-low / s)
        back[k, n] = (min(max(round(float(w[k, n]) / s) + z, 0), 15) - z) * s
    read_back = ((codes - zeros[..., None].astype(float)) * scales[..., None]).reshape(6, 48)[:, :40].T
    assert np.allclose(read_back, back, atol=1e-6)
    proto = one_product(w, draw.normal(size=6).astype(np.float32))
    bias = numpy_helper.to_array(proto.graph.initializer[1])
    replace(proto, Int4(16, int8_activations=False).product)
    x = draw.normal(size=(2, 3, 40)).astype(np.float32)
    assert np.allclose(run(proto, x), x @ back + bias, atol=1e-4)


def test_codes_of_four_bits_are_packed_low_half_first():
    assert packed_pairs(np.array([[1, 2, 3]], np.uint8)).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("step", [Int8Dynamic(), Int8Static(MinMax()), Int8Static(Entropy()), Int4()])
def test_the_quantised_model_is_near_smaller_and_loads(step, graph, tmp_path):
    made = step.apply(graph, context(tmp_path))
    a, b = graph.encode([d for _, d in PAIRS], role="document"), made.encode([d for _, d in PAIRS], role="document")
    cosines = (a * b).sum(axis=1)
    assert cosines.min() > 0.95
    assert not np.array_equal(a, b)
    assert made.file.stat().st_size < 0.75 * graph.file.stat().st_size
    assert made.protocol()["precision"] != graph.protocol()["precision"]
    artefact.save(made, tmp_path / "saved")
    assert np.array_equal(artefact.load(tmp_path / "saved").encode(TEXTS), made.encode(TEXTS))


def test_static_ranges_do_not_see_padding(graph):
    """The range of the first product's input, by hand in torch over real tokens only."""
    embedder = model()
    texts = ["short", "a much longer text than the other one", "x"]
    first = embedder.encoder.model.encoder.layer[0].attention.self.query
    seen = []
    hook = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for text in texts:
        embedder.encode([text])
    hook.remove()
    low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    name = next(p.a for p, _ in products(read(graph.file)).values())
    assert calibrate(graph, texts, MinMax())[name] == pytest.approx((low, high), abs=1e-5)


def test_a_percentile_is_numpys():
    x = np.random.default_rng(3).normal(size=200_000)
    h = Histogram(float(x.min()), float(x.max()))
    h.add(x)
    low, high = Percentile(99.0)(h)
    width = (h.high - h.low) / BINS
    assert low == pytest.approx(np.quantile(x, 0.005), abs=2 * width)
    assert high == pytest.approx(np.quantile(x, 0.995), abs=2 * width)
    assert MinMax()(h) == (h.low, h.high)


def test_entropy_cuts_an_outlier_and_keeps_a_uniform():
    draw = np.random.default_rng(4)
    x = np.append(draw.normal(size=100_000), 60.0)
    h = Histogram(float(x.min()), float(x.max()))
    h.add(x)
    low, high = Entropy()(h)
    assert 2 < high < 15 and low == max(-high, h.low)
    even = Histogram(-1.0, 1.0)
    even.add(draw.uniform(-1, 1, size=100_000))
    assert Entropy()(even)[1] > 0.95


def test_entropy_reads_magnitudes():
    x = np.random.default_rng(6).standard_t(5, size=100_000)
    signed, unsigned = Histogram(float(x.min()), float(x.max())), Histogram(0.0, float(np.abs(x).max()))
    signed.add(x)
    unsigned.add(np.abs(x))
    assert max(np.abs(Entropy()(signed))) == pytest.approx(Entropy()(unsigned)[1])


def test_entropy_is_scipys_divergence():
    from unitsphere.compression.calibration import _divergence

    counts = np.random.default_rng(5).integers(1, 50, size=512)
    n, levels = 256, 128
    p = counts[:n].astype(float)
    p[-1] += counts[n:].sum()
    q = np.concatenate([[sum(counts[i * 2 : i * 2 + 2]) / 2] * 2 for i in range(levels)])
    assert _divergence(counts, n, levels) == pytest.approx(stats.entropy(p, q), rel=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_is_torchs_rounding_and_survives_saving(kind, bits, tmp_path):
    before, embedder = model(), model()
    made = Half(kind).apply(embedder, context(tmp_path))
    dtype = getattr(torch, kind)
    for (name, a), b in zip(before.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(a.to(dtype), b), name
    artefact.save(made, tmp_path / "model")
    loaded = artefact.load(tmp_path / "model")
    assert loaded.dtype == dtype and loaded.protocol()["precision"] == kind
    assert np.abs(loaded.encode(TEXTS) - before.encode(TEXTS)).max() < 8 * 2.0**-bits
    files = [sum(f.stat().st_size for f in (tmp_path / "model").glob("*.safetensors"))]
    artefact.save(before, tmp_path / "whole")
    whole = sum(f.stat().st_size for f in (tmp_path / "whole").glob("*.safetensors"))
    assert files[0] < 0.6 * whole


def test_fake_quantisation_rounds_as_the_formula_and_passes_gradients():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, generator=draw, requires_grad=True)
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    s = (high - low) / 255
    z = round(-low / s)
    slow = [[(min(max(round(float(v) / s) + z, 0), 255) - z) * s for v in row] for row in x]
    assert torch.allclose(rounded_activation(x), torch.tensor(slow), atol=1.01 * s)
    assert float((rounded_activation(x) - torch.tensor(slow)).abs().mean()) < 0.05 * s
    w = torch.randn(3, 7, generator=draw)
    codes, scale = symmetric(w.numpy().T, bits=8)
    assert np.allclose(rounded_weight(w).numpy(), (codes * scale).T, atol=1e-6)
    rounded_activation(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_model_under_fake_quantisation_computes_what_int8_will(graph, tmp_path):
    embedder = model()
    add_fake_quant(embedder.encoder.model)
    assert any(isinstance(m, FakeQuantLinear) for m in embedder.modules())
    plain = model()
    int8 = Int8Dynamic(embeddings=False).apply(graph, context(tmp_path))
    text = [PAIRS[3][1]]
    to_int8 = np.abs(embedder.encode(text) - int8.encode(text)).max()
    to_float = np.abs(plain.encode(text) - int8.encode(text)).max()
    assert to_int8 < 0.5 * to_float
    artefact.save(embedder, tmp_path / "model")
    assert np.array_equal(artefact.load(tmp_path / "model").encode(TEXTS), plain.encode(TEXTS))


def test_steps_in_a_wrong_order_are_named():
    half, int8 = Half("float16"), Int8Dynamic()
    from unitsphere.compression.train import Training

    with pytest.raises(UsageError, match=r"qat changes the torch weights and cannot come after int8.*\[qat,int8\]"):
        check_chain({"int8": int8, "qat": Training([])})
    with pytest.raises(UsageError, match=r"int8 and fp16 both decide"):
        check_chain({"int8": int8, "fp16": half})
    check_chain({"qat": Training([]), "int8": int8})
    zeros, recover = PruneMagnitude(), Training(["loss=distil_mse"])
    with pytest.raises(UsageError, match="the training of recover would undo zeros"):
        check_chain({"zeros": zeros, "recover": recover})
    check_chain({"recover": recover, "zeros": zeros})


def test_bad_settings_are_refused(tmp_path, graph):
    for make, what in (
        (lambda: Int8Dynamic(weight_bits=6), "weight_bits=6"),
        (lambda: Int8Static(MinMax(), texts=0), "texts=0"),
        (lambda: Int4(33), "group_size=33"),
        (lambda: Half("int8"), "dtype=int8"),
        (lambda: Percentile(20), "percentile=20"),
        (lambda: Int8Static(MinMax()).apply(graph, context(tmp_path, [])), "no"),
        (lambda: Half("float16").apply(graph, context(tmp_path)), "GraphModel has no torch weights"),
    ):
        with pytest.raises(UsageError, match=what):
            make()


def test_a_model_in_windows_is_no_graph(tmp_path):
    pooling = {"_target_": "unitsphere.pooling.mean.MeanPooling"}
    embedder = {"_target_": "unitsphere.embedder.Embedder"}
    window = OmegaConf.load(paths.conf() / "window" / "uniform.yaml")
    with pytest.raises(UsageError, match="windows"):
        Onnx().apply(artefact.assemble(tiny(), pooling, embedder, window), context(tmp_path))
