"""A saved model gives the same vectors in unitsphere, in transformers and in sentence-transformers."""

import json
import os
import re

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from conftest import composed
from unitsphere import artefact, paths
from unitsphere.build import build
from unitsphere.coded import Coded
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.pooling.mean import MeanPooling
from unitsphere.search.codes import Binary
from unitsphere.tracing import as_graph
from unitsphere.training.run import build_embedder

TEXTS = ["A red fish.", "an old tree by the river, and a car", "x", ""]
POOLINGS = sorted(f.stem for f in (paths.conf() / "pooling").glob("*.yaml"))


def made(*overrides):
    config = composed("encoder=tiny", *overrides)
    torch.manual_seed(0)
    embedder = build_embedder(config).eval()
    for parameter in embedder.pooling.parameters():  # so that learned poolers are not at their start
        torch.nn.init.normal_(parameter, std=0.3)
    return embedder


def saved(tmp_path, *overrides):
    embedder = made(*overrides)
    artefact.save(embedder, tmp_path / "model")
    return embedder, tmp_path / "model"


@pytest.mark.parametrize(
    "options", [(), ("embedder.projection_dim=7",), ("embedder.normalize=false", "embedder.prompts.query='ask: '")]
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_loads_equal(tmp_path, pooling, options):
    embedder, folder = saved(tmp_path, f"pooling={pooling}", *options)
    again = artefact.load(folder)
    np.testing.assert_allclose(again.encode(TEXTS, "query"), embedder.encode(TEXTS, "query"), atol=1e-6)
    assert again.protocol() == embedder.protocol()

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, add_pooling_layer=False)
    tokens = tokenizer(TEXTS[1:2], return_tensors="pt")
    ours = embedder.encoder.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    torch.testing.assert_close(model.eval()(**tokens).last_hidden_state, ours.last_hidden_state, atol=1e-6, rtol=0)

    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    if not (embedder.pooling.sentence_transformers or pooling == "cls_mlp"):
        assert not (folder / "modules.json").exists()
        return
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    prompt = embedder.prompts.get("query", "")
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt=prompt), embedder.encode(TEXTS, "query"), atol=1e-5)
    (folder / "unitsphere.yaml").unlink()  # what is left is a folder of that library
    (folder / "head.safetensors").unlink(missing_ok=True)
    np.testing.assert_allclose(artefact.load(folder).encode(TEXTS, "query"), embedder.encode(TEXTS, "query"), atol=1e-5)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_whoever_the_umask_lets_reads_every_file(tmp_path, umask, mode):
    embedder, before = made("pooling=attention", "embedder.projection_dim=7"), os.umask(umask)
    try:
        for name, model in (("plain", embedder), ("coded", Coded(embedder).stored_as(Binary(7)))):
            artefact.save(model, tmp_path / name)
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"model.safetensors", "head.safetensors", "maps.safetensors", "code.safetensors"} <= {f.name for f in files}
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


def test_a_train_only_mlp_is_not_exported_but_kept(tmp_path):
    embedder, folder = saved(tmp_path, "pooling=cls_mlp", "pooling.train_only=true")
    assert "Dense" not in (folder / "modules.json").read_text()
    again = artefact.load(folder)
    torch.testing.assert_close(again.pooling.dense.weight, embedder.pooling.dense.weight)


@pytest.mark.parametrize("name", ["query", "passage"])
def test_the_prompt_of_texts_without_a_role_is_sentence_transformers_s(tmp_path, name):
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    embedder, folder = saved(tmp_path)
    said = json.loads((folder / "config_sentence_transformers.json").read_text())
    prompts = {"query": "ask: ", "passage": "read: "}
    said |= {"prompts": prompts, "default_prompt_name": name}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    (folder / "unitsphere.yaml").unlink()
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, embedder.encode(TEXTS, prompt=prompts[name]), atol=1e-5)
    read = artefact.load(folder)
    artefact.save(read, tmp_path / "again")
    graph = as_graph(artefact.load(folder), tmp_path / "graph")
    artefact.save(graph, tmp_path / "saved_graph")
    artefact.save(Coded(read), tmp_path / "coded")
    for place in (folder, tmp_path / "again", tmp_path / "saved_graph", tmp_path / "coded"):
        np.testing.assert_allclose(artefact.load(place).encode(TEXTS), theirs, atol=1e-5)
    again = library.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), theirs, atol=1e-6)
    assert "default_prompt" not in embedder.protocol() and read.protocol()["default_prompt"] in ("query", "document")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said | {"default_prompt_name": "gone"}))
    with pytest.raises(UsageError, match="default_prompt_name=gone"):
        artefact.load(folder)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UsageError, match=r"no such folder here"):
        artefact.load("no/such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="does not hold a model"):
        artefact.load(tmp_path / "empty")
    _, folder = saved(tmp_path, "pooling=attention")
    (folder / "head.safetensors").unlink()
    with pytest.raises(UsageError, match=r"head.safetensors does not fit"):
        artefact.load(folder)
    _, folder = saved(tmp_path)
    (folder / "unitsphere.yaml").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(
        json.dumps([*modules, {"idx": 9, "name": "9", "path": "9_LSTM", "type": "x.LSTM"}])
    )
    with pytest.raises(UsageError, match=r"x.LSTM has no counterpart"):
        artefact.load(folder)


def test_encode_keeps_the_order_and_the_mode(embedder):
    texts = [f"{'long ' * (i % 5)}text {i}" for i in range(20)] + ["text 0"]
    embedder.train()
    together = embedder.encode(texts, batch_tokens=64)
    alone = np.concatenate([embedder.encode([t]) for t in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert embedder.training and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_dropout_is_settable(tmp_path):
    _, folder = saved(tmp_path)
    node = composed("encoder=bert_base", f"encoder.path={folder}", "encoder.dropout=0.25").encoder
    config = build(node).model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
    with pytest.raises(UsageError, match="probability"):
        build({**node, "dropout": 1.5})


class Lengths(Model):
    """A model of another kind: a text's vector is its number of tokens."""

    dim, normalize = 1, False

    def __init__(self, scale: float):
        self.encoder, self.scale, self.prompts, self.read = tiny(), scale, {}, {}

    device = torch.device("cpu")

    def through(self, passes, texts):
        return passes(texts, lambda tokens: self.scale * tokens.mask.sum(dim=1, keepdim=True))

    def protocol(self):
        return {}

    def identity(self):
        return f"lengths {self.scale}"

    def write(self, folder):
        (folder / "scale").write_text(str(self.scale))
        (folder / "unitsphere.yaml").write_text("load: test_artefact.lengths\n")


def lengths(folder):
    return Lengths(float((folder / "scale").read_text()))


def test_a_model_of_another_kind_names_what_loads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "LOADERS", ("test_artefact.lengths", "test_artefact.nothing"))
    artefact.save(Lengths(2.0), tmp_path / "run" / "model")
    for place in ("run", "run/model"):  # a run folder and a model folder
        again = artefact.load(tmp_path / place)
        assert isinstance(again, Lengths)
        np.testing.assert_array_equal(again.encode(["", "abc"]), [[4.0], [10.0]])  # two special tokens
    with pytest.raises(UsageError, match="windows go with"):
        artefact.load(tmp_path / "run", window={"_target_": "x"})
    with pytest.raises(UsageError, match="only an encoder can be trained"):
        build_embedder(composed("encoder=tiny", f"init={tmp_path / 'run'}"))
    (tmp_path / "run" / "model" / "unitsphere.yaml").write_text("load: test_artefact.nothing\n")
    with pytest.raises(UsageError, match="nothing"):
        artefact.load(tmp_path / "run")


class Own(MeanPooling):
    """A pooler of somebody's own, with a layer in it."""

    def __init__(self, dim: int, layer: torch.nn.Module):
        super().__init__(dim)
        self.layer = layer

    def forward(self, states):
        return self.layer(super().forward(states))


def test_a_pooler_of_one_s_own_loads_again(tmp_path):
    layer = {"_target_": "torch.nn.Linear", "in_features": 32, "out_features": 32}
    pooling = {"_target_": "test_artefact.Own", "layer": layer}
    embedder = artefact.assemble(tiny(), pooling, {"_target_": "unitsphere.embedder.Embedder"}).eval()
    artefact.save(embedder, tmp_path / "model")
    np.testing.assert_allclose(artefact.load(tmp_path / "model").encode(TEXTS), embedder.encode(TEXTS), atol=1e-6)


MEAN = "unitsphere.pooling.mean.MeanPooling"
CALLED = []


def called(**kwargs):
    CALLED.append(kwargs)


class Called(torch.nn.Module):
    """A class of torch's kind that is no part of a model, such as one that loads other models."""

    def __init__(self):
        CALLED.append(self)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"pooling": {"_target_": MEAN, "x": {"_target_": "test_artefact.called"}}}, "pooling.x._target_="),
        ({"pooling": {"_target_": MEAN, "x": [{"y": {"_target_": "test_artefact.called"}}]}}, "pooling.x.0.y._target_="),
        ({"pooling": {"_target_": "test_artefact.called"}}, "pooling._target_=test_artefact.called"),
        ({"pooling": {"_target_": MEAN, "x": {"_target_": "test_artefact.Called"}}}, "pooling.x._target_="),
        ({"pooling": {"_target_": MEAN, "_args_": [{"_target_": "test_artefact.called"}]}}, "pooling._args_.0._target_="),
        ({"pooling": {"_target_": MEAN, "x": "${oc.decode:'{_target_: test_artefact.called}'}"}}, "no interpolations"),
        ({"pooling": {"_target_": {"_target_": "test_artefact.called"}}}, "pooling._target_="),
        ({"embedder": {"_target_": "test_artefact.called"}}, "embedder._target_=test_artefact.called"),
        ({"window": {"_target_": "test_artefact.called"}}, "window._target_=test_artefact.called"),
        ({"pooling": {"_target_": "mine.Gone"}}, "pooling._target_=mine.Gone"),
        ({"load": "test_artefact.called"}, "load=test_artefact.called"),
        ({"load": {"_target_": "test_artefact.called"}}, "load._target_=test_artefact.called"),
    ],
)  # fmt: skip
def test_a_model_s_file_calls_nothing_but_parts_of_a_model(tmp_path, written, said):
    _, folder = saved(tmp_path)
    before = yaml.safe_load((folder / "unitsphere.yaml").read_text())
    (folder / "unitsphere.yaml").write_text(yaml.safe_dump(before | written))
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        artefact.load(folder)
    assert str(folder / "unitsphere.yaml") in str(error.value) and not CALLED


def test_nor_does_the_file_of_its_code(tmp_path):
    artefact.save(Coded(made()).stored_as(Binary(32)), tmp_path / "model")
    assert artefact.load(tmp_path / "model").vector_bytes == 4
    (tmp_path / "model" / "code.json").write_text('{"_target_": "test_artefact.called"}')
    with pytest.raises(UsageError, match=r"code.json: _target_=test_artefact.called"):
        artefact.load(tmp_path / "model")
    assert not CALLED


def library_folder(tmp_path, *modules, lower=False):
    """A folder that sentence-transformers itself has written, and its model."""
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    from sentence_transformers.models import Normalize, Pooling, Transformer

    tiny().model.save_pretrained(tmp_path / "bert")
    tiny().tokenizer.save_pretrained(tmp_path / "bert")
    made = {"normalize": Normalize, "pooling": lambda: Pooling(32)}
    first = Transformer(str(tmp_path / "bert"), do_lower_case=lower)
    model = library.SentenceTransformer(
        modules=[first, *(made[m]() if isinstance(m, str) else m for m in modules)], device="cpu"
    )
    model.save(str(tmp_path / "theirs"))
    return tmp_path / "theirs", model


def dense(width, out, **options):
    from sentence_transformers.models import Dense

    return Dense(width, out, **{"bias": False, "activation_function": torch.nn.Identity(), **options})


def test_linear_maps_in_a_row_are_one(tmp_path):
    folder, model = library_folder(tmp_path, "pooling", dense(32, 96), dense(96, 24), "normalize")
    embedder = artefact.load(folder)
    assert embedder.dim == 24 and embedder.normalize
    np.testing.assert_allclose(embedder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        (lambda: ["pooling", dense(32, 32, use_residual=True)], "this Dense has no counterpart"),
        (lambda: ["pooling", dense(32, 32, bias=True)], "this Dense has no counterpart"),
        (lambda: ["pooling", dense(32, 32, activation_function=torch.nn.Tanh())], "this Dense has no counterpart"),
        (lambda: ["pooling", "normalize", dense(32, 32)], "none in this place"),
        (lambda: ["normalize", "pooling"], "none in this place"),
    ],
)
def test_what_would_give_other_vectors_is_refused(tmp_path, modules, named):
    folder, _ = library_folder(tmp_path, *modules())
    with pytest.raises(UsageError, match=named):
        artefact.load(folder)


def test_a_length_of_queries_alone_is_refused(tmp_path):
    folder, _ = library_folder(tmp_path, "pooling")
    said = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(said | {"query_length": 4}))
    with pytest.raises(UsageError, match="query_length=4 has no counterpart"):
        artefact.load(folder)


def test_letters_are_lowered_where_sentence_transformers_lowers_them(tmp_path):
    _, folder = saved(tmp_path)
    (folder / "unitsphere.yaml").unlink()
    said = json.loads((folder / "sentence_bert_config.json").read_text())
    tokenizer = artefact.load(folder).encoder.tokenizer
    tokenizer.backend_tokenizer.normalizer = None  # a cased one
    tokenizer.save_pretrained(folder)
    cased = artefact.load(folder).encode(["A Red Fish", "a red fish"])
    assert not np.allclose(cased[0], cased[1])
    (folder / "sentence_bert_config.json").write_text(json.dumps(said | {"do_lower_case": True}))
    lowered = artefact.load(folder)
    np.testing.assert_array_equal(lowered.encode(["A Red Fish"]), lowered.encode(["a red fish"]))
    artefact.save(lowered, tmp_path / "again")
    np.testing.assert_array_equal(
        artefact.load(tmp_path / "again").encode(["A RED fish"]), lowered.encode(["a red fish"])
    )
