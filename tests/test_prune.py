"""Layers, heads, neurons and weights taken out: against the whole model with zeros in their place."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from conftest import composed
from unitsphere import artefact, paths
from unitsphere.build import build
from unitsphere.compression.importance import best, gradient, magnitude
from unitsphere.compression.layers import PruneLayers
from unitsphere.compression.magnitude import PruneMagnitude, compressed_bytes
from unitsphere.compression.onnx import Onnx
from unitsphere.compression.step import Context, check_chain
from unitsphere.compression.structured import PruneFFN, PruneHeads
from unitsphere.encoders.cross_encoder import CrossEncoder
from unitsphere.encoders.language_model import with_head
from unitsphere.encoders.pair_scorer import PairScorer
from unitsphere.encoders.pruned import prune, units
from unitsphere.encoders.tiny import tiny
from unitsphere.encoders.transformer import TransformerEncoder, transformer
from unitsphere.errors import UsageError
from unitsphere.training.run import build_embedder
from unitsphere.types import Text

TEXTS = ["A red fish.", "an old tree by the river, and a car", "x", "", "naïve 鱼"]
PAIRS = [("sort a list", "sorted(list)"), ("find a tree", "the tree in a graph"), ("x", "y z"), ("b", "b"), ("a", "c")]
SIZES = {"vocab_size": 141, "num_attention_heads": 4, "num_hidden_layers": 3, "pad_token_id": 0}
KINDS = {
    "bert": None,
    "roberta": RobertaConfig(hidden_size=32, intermediate_size=48, max_position_embeddings=130, **SIZES),
    "xlm-roberta": XLMRobertaConfig(hidden_size=32, intermediate_size=48, max_position_embeddings=130, **SIZES),
    "camembert": CamembertConfig(hidden_size=32, intermediate_size=48, max_position_embeddings=130, **SIZES),
    "electra": ElectraConfig(hidden_size=32, embedding_size=16, intermediate_size=48, **SIZES),
    "mpnet": MPNetConfig(hidden_size=32, intermediate_size=48, max_position_embeddings=130, **SIZES),
    "distilbert": DistilBertConfig(vocab_size=141, dim=32, hidden_dim=48, n_heads=4, n_layers=3, pad_token_id=0),
}
HEADS = [[0, 2, 3], [1], [0, 1, 2, 3]]
BEHIND = {"heads": r"(attention\.output\.dense|attn\.o|out_lin)$", "ffn": r"(?<!attention\.)(output\.dense|lin2)$"}


def embedder_of(kind="bert", **options):
    encoder = tiny(depth=3, **options)
    torch.manual_seed(0)
    if KINDS[kind] is not None:
        encoder = TransformerEncoder(AutoModel.from_config(KINDS[kind]), encoder.tokenizer, 100)
    for weight in encoder.parameters():  # so that biases count, and position biases of heads differ
        torch.nn.init.normal_(weight, std=0.2)
    node = {"_target_": "unitsphere.embedder.Embedder"}
    return artefact.assemble(encoder, {"_target_": "unitsphere.pooling.mean.MeanPooling"}, node).eval()


def context(tmp_path, pairs=PAIRS, **options):
    return Context(pairs=pairs, max_length=None, folder=tmp_path, **options)


def behind(model, part):
    """The matrices behind heads or neurons, found by their names alone."""
    return [module for name, module in model.named_modules() if re.search(BEHIND[part], name)]


def some(part, count=3):
    return HEADS[:count] if part == "heads" else [list(range(i, 40, 2 + i)) for i in range(count)]


@pytest.mark.parametrize("part", ["heads", "ffn"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_model_is_the_whole_one_with_zeros_there_and_loads_again(kind, part, tmp_path):
    whole, kept = embedder_of(kind), some(part)
    cut = copy.deepcopy(whole)
    prune(cut.encoder.model, part, kept)
    matrices, size = behind(whole.encoder.model, part), 8 if part == "heads" else 1
    assert len(matrices) == 3
    for linear, of_layer in zip(matrices, kept, strict=True):
        for unit in set(range(linear.in_features // size)) - set(of_layer):
            linear.weight.data[:, unit * size : (unit + 1) * size] = 0
    np.testing.assert_allclose(cut.encode(TEXTS), whole.encode(TEXTS), atol=1e-5)
    per_unit = {"heads": 4 * 8 * 32 + 3 * 8, "ffn": 2 * 32 + 1}[part]  # weights and biases
    gone = sum(linear.in_features // size - len(of_layer) for linear, of_layer in zip(matrices, kept, strict=True))
    counts = [sum(p.numel() for p in model.parameters()) for model in (whole, cut)]
    assert counts[0] - counts[1] == gone * per_unit

    artefact.save(cut, tmp_path / "cut")
    again = artefact.load(tmp_path / "cut")
    np.testing.assert_allclose(again.encode(TEXTS), cut.encode(TEXTS), atol=1e-6)
    assert type(again.encoder.model) is type(whole.encoder.model)
    assert [u.count for u in units(again.encoder.model, part)] == [len(of_layer) for of_layer in kept]


def test_cuts_follow_each_other(tmp_path):
    """Heads twice, neurons, then layers: as if at once, in memory and from disk."""
    for kind in ("bert", "mpnet"):
        model = embedder_of(kind)
        once = copy.deepcopy(model)
        prune(model.encoder.model, "heads", [[0, 2, 3], [1, 3], [0, 1, 2, 3]])
        artefact.save(model, tmp_path / "model")
        model = artefact.load(tmp_path / "model")
        prune(model.encoder.model, "heads", [[1, 2], [1], [0, 3]])
        prune(model.encoder.model, "ffn", some("ffn"))
        model = PruneLayers(layers=[0, 2]).apply(model, context(tmp_path))
        prune(once.encoder.model, "heads", [[2, 3], [3], [0, 3]])
        prune(once.encoder.model, "ffn", some("ffn"))
        artefact.save(once, tmp_path / "once")
        artefact.save(model, tmp_path / "model")
        expected = transformer(str(tmp_path / "once"), layers=[0, 2])
        for got in (model.encoder, artefact.load(tmp_path / "model").encoder):
            assert got.model.config.pruned == {"heads": [[2, 3], [0, 3]], "ffn": [20, 10]}
            tokens = got.tokenizer(TEXTS, padding=True, return_tensors="pt")
            arguments = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            ours, theirs = got.model.eval()(**arguments)[0], expected.model.eval()(**arguments)[0]
            torch.testing.assert_close(ours, theirs)


def test_neurons_of_equal_number_are_loaded_by_other_libraries(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    model = PruneFFN(keep=0.25, importance="magnitude").apply(embedder_of(), context(tmp_path))
    artefact.save(model, tmp_path / "ffn")
    config = json.loads((tmp_path / "ffn" / "config.json").read_text())
    assert config["intermediate_size"] == 32 and "pruned" not in config
    theirs = library.SentenceTransformer(str(tmp_path / "ffn"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("step", [PruneHeads(), PruneFFN(per_layer=False, least=1)])
def test_what_only_we_can_load_is_refused_by_others(step, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    model = step.apply(embedder_of(), context(tmp_path))
    artefact.save(model, tmp_path / "model")
    assert not (tmp_path / "model" / "modules.json").exists()
    for load in (AutoModel.from_pretrained, library.SentenceTransformer):
        with pytest.raises(RuntimeError):
            load(str(tmp_path / "model"))
    np.testing.assert_allclose(artefact.load(tmp_path / "model").encode(TEXTS), model.encode(TEXTS), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_cut_model_is_exported(kind, tmp_path):
    model = embedder_of(kind)
    prune(model.encoder.model, "heads", HEADS)
    prune(model.encoder.model, "ffn", some("ffn"))
    graph = Onnx().apply(copy.deepcopy(model), context(tmp_path))
    np.testing.assert_allclose(graph.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_a_cut_model_trains(tmp_path):
    model = embedder_of(dropout=0.1)
    prune(model.encoder.model, "heads", HEADS)
    prune(model.encoder.model, "ffn", some("ffn"))
    artefact.save(model, tmp_path / "model")
    student = build_embedder(composed("encoder=tiny", f"init={tmp_path / 'model'}", "+encoder.drop_head=0.3"))
    np.testing.assert_allclose(student.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    target = torch.from_numpy(embedder_of().encode(TEXTS))
    optimizer, losses = torch.optim.Adam(student.parameters(), lr=1e-3), []
    for _ in range(15):
        z = student(student.encoder.pad([Text(ids) for ids in student.encoder.tokenize(TEXTS)]))
        losses.append(F.mse_loss(z, target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    headed = with_head(artefact.load(tmp_path / "model").encoder)  # loss=mlm
    assert headed(input_ids=torch.tensor([[2, 7, 3]])).logits.shape == (1, 3, 141)
    reader = artefact.load(tmp_path / "model").encoder  # loss=cross_encoder
    scorer = PairScorer(reader)
    reader.exported().save_pretrained(tmp_path / "scorer")
    reader.tokenizer.save_pretrained(tmp_path / "scorer")
    logits = scorer(*_padded(scorer, [("a", "b"), ("fish", "tree")])).detach()
    again = CrossEncoder(str(tmp_path / "scorer"))([("a", "b"), ("fish", "tree")])
    np.testing.assert_allclose(again[:, 0], logits, atol=1e-5)


def _padded(scorer, pairs):
    sides = ([Text(ids) for ids in tiny().tokenize(side)] for side in zip(*pairs, strict=True))
    joined, begins = scorer.join(*sides)
    return tiny().pad(joined), begins


def test_gradient_importance_is_the_gradient_of_a_mask_per_text(tmp_path):
    pairs = PAIRS[:3]
    model, ours = embedder_of(dropout=0.0), {}
    for part, size in (("heads", 8), ("ffn", 1)):
        layers = units(model.encoder.model, part)
        ours[part] = gradient(model, layers, context(tmp_path, pairs), pairs=9, batch_size=9, temperature=0.1)
        assert all(p.grad is None for p in model.parameters()) and not model.training
        masks = [torch.ones(2, 3, layer.count, requires_grad=True) for layer in layers]  # side, text, unit
        hooks, z = [], []
        for linear, mask in zip(behind(model.encoder.model, part), masks, strict=True):

            def masked(module, given, mask=mask, size=size, z=z):
                return (given[0] * mask[len(z)].repeat_interleave(size, dim=1)[:, None],)

            hooks.append(linear.register_forward_pre_hook(masked))
        for side in range(2):
            texts = [model.encoder.tokenize([pair[side]])[0] for pair in pairs]
            z.append(model(model.encoder.pad([Text(ids) for ids in texts])))
        loss = -sum(
            (z[0][i] @ z[1][i] / 0.1) - torch.log(sum(torch.exp(z[0][i] @ z[1][j] / 0.1) for j in range(3)))
            for i in range(3)
        )
        (loss / 3).backward()
        for got, mask in zip(ours[part], masks, strict=True):
            torch.testing.assert_close(got, mask.grad.abs().sum(dim=(0, 1)), atol=1e-6, rtol=1e-4)
        for hook in hooks:
            hook.remove()
        model.zero_grad()


def test_gradient_importance_of_texts_without_partners(tmp_path):
    model = embedder_of(dropout=0.1)
    layers = units(model.encoder.model, "heads")
    twice = [(text, text) for text in ("sort a list", "find a tree", "b")]
    one, again = (gradient(model, layers, context(tmp_path, twice), 9, 2, 0.05) for _ in range(2))
    other = gradient(model, layers, context(tmp_path, twice, seed=2), 9, 2, 0.05)
    for a, b, c in zip(one, again, other, strict=True):
        assert torch.equal(a, b) and not torch.allclose(a, c)  # dropout was on, and seeded
    for pairs in ([], PAIRS[:1], [("a", "b"), ("a", "c")]):
        with pytest.raises(UsageError, match="none has another as its negative"):
            gradient(model, layers, context(tmp_path, pairs), 9, 9, 0.05)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit():
    model = embedder_of().encoder.model
    attention = model.encoder.layer[1].attention
    expected = [
        np.sqrt(
            sum(
                weight.detach().square().sum().item()
                for linear in (attention.self.query, attention.self.key, attention.self.value)
                for weight in linear.weight[8 * h : 8 * h + 8]
            )
            + attention.output.dense.weight[:, 8 * h : 8 * h + 8].detach().square().sum().item()
        )
        for h in range(4)
    ]
    np.testing.assert_allclose(magnitude(units(model, "heads"))[1], expected, rtol=1e-5)
    layer = model.encoder.layer[2]
    expected = [np.hypot(layer.intermediate.dense.weight[n].norm().item(), layer.output.dense.weight[:, n].norm().item())
                for n in range(128)]  # fmt: skip
    np.testing.assert_allclose(magnitude(units(model, "ffn"))[2], expected, rtol=1e-5)


def test_the_best_units_per_layer_and_of_all():
    importance = [torch.tensor([3.0, 1.0, 4.0, 0.0]), torch.tensor([0.1, 0.3, 0.2, 0.0]), torch.zeros(4)]
    assert best(importance, 0.5, True, 1) == [[0, 2], [1, 2], [0, 1]]
    assert best(importance, 0.01, True, 1) == [[2], [1], [0]]
    assert best(importance, 1.0, False, 1) == [[0, 1, 2, 3]] * 3
    # over their norms: .59 .20 .78 0 | .27 .80 .53 0 | 0; one of each layer, then the best others
    assert best(importance, 5 / 12, False, 1) == [[0, 2], [1, 2], [0]]
    assert best(importance, 0.1, False, 2) == [[0, 2], [1, 2], [0, 1]]


@pytest.mark.parametrize("step", [PruneHeads, PruneFFN])
def test_structured_steps(step, tmp_path):
    for options in ({}, {"importance": "random"}, {"importance": "magnitude", "per_layer": False}):
        model = step(keep=0.5, **options).apply(embedder_of(), context(tmp_path))
        counts = [u.count for u in units(model.encoder.model, step.part)]
        total = sum(counts)
        assert total == {"heads": 6, "ffn": 192}[step.part]
        assert options.get("per_layer", True) is (len(set(counts)) == 1) or step is PruneHeads
    whole = embedder_of()
    assert np.array_equal(step(keep=1.0).apply(whole, context(tmp_path)).encode(TEXTS), embedder_of().encode(TEXTS))
    assert not hasattr(whole.encoder.model.config, "pruned")
    seeds = [
        step(importance="random").apply(embedder_of(), context(tmp_path, seed=seed)).encode(TEXTS) for seed in (1, 1, 2)
    ]
    assert np.array_equal(seeds[0], seeds[1]) and not np.allclose(seeds[0], seeds[2])
    for wrong in ({"keep": 0}, {"keep": 1.5}, {"importance": "age"}, {"least": 0}):
        with pytest.raises(UsageError, match="would fit"):
            step(**wrong)


def test_an_architecture_that_is_not_known_is_named(tmp_path):
    torch.manual_seed(0)
    model = AutoModel.from_config(GPT2Config(vocab_size=141, n_embd=32, n_layer=2, n_head=4))
    model = artefact.assemble(
        TransformerEncoder(model, tiny().tokenizer, 100),
        {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder"},
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"GPT2Model.*bert"):
        PruneHeads().apply(model, context(tmp_path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"count": 3}, [0, 2, 5]), ({"count": 1}, [0]), ({"count": 2}, [0, 5]), ({"count": 6}, [0, 1, 2, 3, 4, 5]),
        ({"count": 2, "choose": "first"}, [0, 1]), ({"count": 2, "choose": "last"}, [4, 5]), ({"layers": [4, 1]}, [4, 1]),
    ],
)  # fmt: skip
def test_which_layers_are_kept(options, expected, tmp_path):
    model = artefact.assemble(
        tiny(depth=6), {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder"}
    )
    layers = list(model.encoder.model.encoder.layer)
    got = PruneLayers(**options).apply(model, context(tmp_path)).encoder.model.encoder.layer
    assert [layers.index(layer) for layer in got] == expected


def test_layers_at_random_and_wrong_numbers(tmp_path):
    def kept(seed):
        model = embedder_of()
        before = list(model.encoder.model.encoder.layer)
        step = PruneLayers(count=2, choose="random")
        return [
            before.index(layer) for layer in step.apply(model, context(tmp_path, seed=seed)).encoder.model.encoder.layer
        ]

    chosen = [kept(seed) for seed in range(8)]
    assert chosen[0] == kept(0) and len({tuple(c) for c in chosen}) > 1 and all(c == sorted(c) for c in chosen)
    with pytest.raises(UsageError, match="count=7: the model has 3"):
        PruneLayers(count=7).apply(embedder_of(), context(tmp_path))
    with pytest.raises(UsageError, match="layers 0 to 2"):
        PruneLayers(layers=[3]).apply(embedder_of(), context(tmp_path))
    with pytest.raises(UsageError, match="spread, first"):
        PruneLayers(choose="middle")
    with pytest.raises(UsageError, match="no training texts"):
        PruneLayers(count=1, choose="search").apply(embedder_of(), context(tmp_path, []))


def test_a_search_drops_what_costs_least(tmp_path):
    """By the change of vectors, against every order tried out; and by a score."""

    def with_layers(layers):
        model = embedder_of()
        stack = model.encoder.model.encoder
        stack.layer = torch.nn.ModuleList(stack.layer[i] for i in layers)
        sides = zip(*PAIRS, strict=True)
        return np.concatenate([model.encode(list(side)) for side in sides])

    def change(layers):
        return np.square(with_layers(layers) - with_layers([0, 1, 2])).mean()

    two = min(([1, 2], [0, 2], [0, 1]), key=change)
    one = min(([layer] for layer in two), key=change)
    for count, expected in ((2, two), (1, one)):
        model = PruneLayers(count=count, choose="search").apply(embedder_of(), context(tmp_path))
        sides = zip(*PAIRS, strict=True)
        got = np.concatenate([model.encode(list(side)) for side in sides])
        np.testing.assert_allclose(got, with_layers(expected), atol=1e-6)

    wanted = embedder_of().encoder.model.encoder.layer[1].intermediate.dense.weight

    def score(model):  # likes the second layer, and few
        layers = model.encoder.model.encoder.layer
        return sum(torch.equal(layer.intermediate.dense.weight, wanted) for layer in layers) - len(layers) / 10

    model = PruneLayers(count=1, choose="search").apply(embedder_of(), context(tmp_path, scorer=lambda: score))
    assert torch.equal(model.encoder.model.encoder.layer[0].intermediate.dense.weight, wanted)


@pytest.mark.parametrize("per_matrix", [False, True])
def test_the_smallest_weights_are_zero(per_matrix, tmp_path):
    before = {name: w.clone() for name, w in embedder_of().named_parameters()}
    model = PruneMagnitude(0.6, per_matrix).apply(embedder_of(), context(tmp_path))
    linear = {name: w for name, w in model.named_parameters() if w.ndim == 2 and "embeddings" not in name}
    assert linear.keys() < before.keys() and len(linear) == 3 * 6
    groups = [[name] for name in linear] if per_matrix else [list(linear)]
    for group in groups:
        sizes = np.sort(np.concatenate([before[name].detach().abs().flatten().numpy() for name in group]))
        threshold = sizes[round(0.6 * len(sizes))]
        for name in group:
            expected = torch.where(before[name].abs() >= threshold, before[name], 0.0)
            assert torch.equal(linear[name], expected)
    others = before.keys() - linear.keys()
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in others)
    artefact.save(model, tmp_path / "model")
    np.testing.assert_array_equal(artefact.load(tmp_path / "model").encode(TEXTS), model.encode(TEXTS))
    sizes = {model: len(save(model.state_dict())) for model in (embedder_of(), model)}
    assert len(set(sizes.values())) == 1 and compressed_bytes(model) < 0.8 * compressed_bytes(embedder_of())
    with pytest.raises(UsageError, match=r"\[0, 1\)"):
        PruneMagnitude(1.0)


OPTIONS = ("prune_layers", "prune_heads", "prune_ffn", "distil_3_layers", "distil_6_layers", "prune_magnitude")


def test_options_build_chain_and_name_runs_that_compose():
    nodes = composed(f"compression=[{','.join(OPTIONS)}]").compression
    steps = {name: build(node) for name, node in nodes.items()}
    assert tuple(steps) == OPTIONS
    check_chain(steps)
    for name, step in steps.items():
        overrides = [override.replace("{original}", str(paths.conf())) for override in step.recovery]
        assert bool(overrides) is name.startswith("distil_")
        if overrides:
            config = composed("encoder=tiny", *overrides)
            assert config.loss.teacher.path == str(paths.conf()) and config.select == "last"
            assert config.loss.max_length == config.data.max_length  # the teacher reads what the student can
