"""What is exported computes what the model computes, or is not left there."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from unitsphere import artefact, tracing
from unitsphere.compression.int8 import Int8Dynamic
from unitsphere.encoders.pruned import prune
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.export.onnx import ToOnnx, ToQuantizedOnnx
from unitsphere.export.sentence_transformers import ToSentenceTransformers
from unitsphere.export.tensorrt import ToTensorRT
from unitsphere.export.torch_export import ToTorchExport
from unitsphere.export.triton import ToTriton
from unitsphere.export.verify import COUNT, near, same, texts
from unitsphere.graph import GraphModel

TEXTS = ["", "short", "naïve 中文 🙂", "rather longer " * 12]


def model(pooling: str = "mean.MeanPooling", seed: int = 0, **embedder):
    node = {"_target_": "unitsphere.embedder.Embedder", "prompts": {"query": "find: "}} | embedder
    encoder = tiny(max_length=32, seed=seed)
    return artefact.assemble(encoder, {"_target_": f"unitsphere.pooling.{pooling}"}, node).eval()


POOLINGS = (
    "mean.MeanPooling",
    "cls.CLSPooling",
    "cls.CLSMLPPooling",
    "max.MaxPooling",
    "max.MeanMaxPooling",
    "mean.WeightedMeanPooling",
    "last_token.LastTokenPooling",
    "attention.AttentionPooling",
    "mean.FirstLastMeanPooling",
)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("options", [{}, {"pool_prompt": False, "projection_dim": 8, "normalize": False}])
def test_every_pooling_is_inside_the_graph(pooling, options, tmp_path):
    embedder = model(pooling, **options)
    said = ToOnnx()(embedder, tmp_path)
    assert "e-0" in said
    graph = artefact.load(tmp_path)
    for role in (None, "query"):
        assert np.abs(graph.encode(TEXTS, role=role) - embedder.encode(TEXTS, role=role)).max() < 1e-5


def test_a_graph_does_not_say_who_made_it_and_where(tmp_path):
    ToQuantizedOnnx(Int8Dynamic())(model(), tmp_path / "mine")
    raw = (tmp_path / "mine" / "onnx" / "model.onnx").read_bytes()
    assert b".py" not in raw and b"stack_trace" not in raw


def test_a_saved_tokenizer_cuts_where_the_model_does_and_pads_nothing(tmp_path):
    embedder = model()
    embedder.encoder.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=7)  # by whoever used it last
    artefact.save(embedder, tmp_path / "mine")
    saved = json.loads((tmp_path / "mine" / "tokenizer.json").read_text())
    assert saved["truncation"]["max_length"] == 32 and saved["padding"] is None


def test_a_graph_that_differs_is_refused():
    with pytest.raises(UsageError, match=r"the export differs from the model by .*, over 0.0001: nothing is written"):
        same(model(), model(seed=1), 1e-4)
    with pytest.raises(UsageError, match=r"below 0\.99"):
        near(model(), model(seed=1), 0.99)
    assert same(model(), model(), 1e-4) == 0


def test_it_is_checked_on_texts_of_all_lengths():
    reader = model().encoder
    lengths = [len(ids) for ids in reader.tokenize(texts(reader))]
    assert len(texts(reader)) == COUNT and texts(reader) == texts(reader)
    assert min(lengths) == 2 and max(lengths) == reader.max_length
    assert len(set(lengths)) > reader.max_length / 2


def test_int8(tmp_path):
    embedder = model()
    assert "mean cosine" in ToQuantizedOnnx(Int8Dynamic())(embedder, tmp_path)
    graph = artefact.load(tmp_path)
    assert (graph.encode(TEXTS) * embedder.encode(TEXTS)).sum(axis=1).min() > 0.95


def test_sentence_transformers_loads_the_folder_and_its_graph(tmp_path):
    pytest.importorskip("sentence_transformers")
    embedder = model()
    assert "in sentence-transformers" in ToSentenceTransformers()(embedder, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    assert [o.name for o in session.get_outputs()] == ["last_hidden_state"]
    tokens = embedder.encoder.tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="np")
    (states,) = session.run(None, {name: tokens[name] for name in ("input_ids", "attention_mask")})
    mask = tokens["attention_mask"][..., None]
    pooled = (states * mask).sum(axis=1) / mask.sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert np.abs(pooled - embedder.encode(TEXTS)).max() < 1e-5
    for file in ("config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"):
        assert (tmp_path / file).exists()  # what Text Embeddings Inference reads
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 32


def test_the_folder_has_a_graph_in_int8_too(tmp_path):
    embedder = model()
    said = ToSentenceTransformers(quantized=Int8Dynamic())(embedder, tmp_path)
    assert re.search(r"int8: mean cosine of hidden states (0\.99|1\.00)", said)
    graphs = [tmp_path / "onnx" / name for name in ("model.onnx", "model_int8.onnx")]
    types = [{i.data_type for i in onnx.load(graph).graph.initializer} for graph in graphs]
    assert onnx.TensorProto.INT8 in types[1] - types[0]
    said = ToSentenceTransformers(quantized=Int8Dynamic(), cosine=1.01)(embedder, tmp_path / "other")
    assert "below to.cosine=1.01: left out" in said
    assert [file.name for file in (tmp_path / "other" / "onnx").iterdir()] == ["model.onnx"]


def test_what_sentence_transformers_has_not_is_said(tmp_path):
    with pytest.raises(UsageError, match="AttentionPooling"):
        ToSentenceTransformers()(model("attention.AttentionPooling"), tmp_path)
    cut = model()
    prune(cut.encoder.model, "heads", [[0]] * cut.encoder.model.config.num_hidden_layers)
    with pytest.raises(UsageError, match="cannot load cut heads"):
        ToSentenceTransformers()(cut, tmp_path)


def test_sentence_transformers_gets_prompts_that_are_not_pooled_and_half_precision(tmp_path):
    """What its own pooling leaves out is no input of the graph of hidden states."""
    pytest.importorskip("sentence_transformers")
    for name, embedder in (("prompt", model(pool_prompt=False)), ("half", model().bfloat16())):
        said = ToSentenceTransformers(quantized=Int8Dynamic())(embedder, tmp_path / name)
        assert float(said.rpartition(" ")[2]) < 1e-5
        session = onnxruntime.InferenceSession(str(tmp_path / name / "onnx" / "model.onnx"))
        assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("step", [None, Int8Dynamic()])
def test_weights_in_a_file_of_their_own_are_found_again(step, tmp_path, monkeypatch):
    """As of a graph of more than 2 GB."""
    monkeypatch.setattr(tracing, "LARGEST", 0)
    embedder = model()
    (ToOnnx() if step is None else ToQuantizedOnnx(step))(embedder, tmp_path / "mine")
    assert (tmp_path / "mine" / "onnx" / "model.onnx.data").stat().st_size > 10_000
    vectors = artefact.load(tmp_path / "mine").encode(TEXTS)
    assert (vectors * embedder.encode(TEXTS)).sum(axis=1).min() > 0.95
    if step is None:
        ToTriton(name="mine")(embedder, tmp_path)
        onnxruntime.InferenceSession(str(tmp_path / "mine" / "1" / "model.onnx"))


def test_torch_export(tmp_path):
    embedder = model(pool_prompt=False)
    ToTorchExport()(embedder, tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    tokens = embedder.encoder.tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    out = program(tokens["input_ids"], tokens["attention_mask"], torch.zeros(len(TEXTS), dtype=torch.long))
    assert np.abs(out.detach().numpy() - embedder.encode(TEXTS)).max() < 1e-5


def test_tensorrt_says_what_it_needs(tmp_path):
    with pytest.raises(UsageError, match=r"needs TensorRT here.*CPUExecutionProvider"):
        ToTensorRT()(model(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_engine_of_tensorrt_takes_every_input_and_is_asked_for_no_more_texts_than_it_takes(tmp_path, monkeypatch):
    embedder = model(pool_prompt=False)
    graph = tracing.as_graph(embedder, tmp_path)
    options = ToTensorRT(batch=16).options(graph, tmp_path)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1,prompt:1"
    assert options["trt_profile_opt_shapes"] == "input_ids:16x32,attention_mask:16x32,prompt:16"
    assert options["trt_profile_max_shapes"] == "input_ids:16x32,attention_mask:16x32,prompt:16"
    asked, call = [], GraphModel.__call__
    monkeypatch.setattr(
        GraphModel, "__call__", lambda self, tokens: asked.append(len(tokens.ids)) or call(self, tokens)
    )
    monkeypatch.setattr("unitsphere.export.tensorrt.find_spec", lambda name: object())
    monkeypatch.setattr("unitsphere.export.tensorrt.PROVIDER", "CPUExecutionProvider")  # which has other options
    monkeypatch.setattr(ToTensorRT, "options", lambda *_: {})
    assert "mean cosine 1.0" in ToTensorRT(batch=16)(embedder, tmp_path / "engine")
    assert max(asked) <= 16 and sum(asked) == len(set(texts(embedder.encoder)))


def test_a_prompt_s_length_is_one_number_a_text_in_triton_and_none_of_a_row_s_in_the_graph(tmp_path):
    ToTriton()(model(pool_prompt=False), tmp_path)
    text = (tmp_path / "embedder" / "config.pbtxt").read_text()
    assert 'name: "prompt", data_type: TYPE_INT64, dims: [ 1 ] reshape: { shape: [ ] } }' in text
    session = onnxruntime.InferenceSession(str(tmp_path / "embedder" / "1" / "model.onnx"))
    assert {i.name: len(i.shape) for i in session.get_inputs()} == {"input_ids": 2, "attention_mask": 2, "prompt": 1}
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the schema comes with tritonclient")
    from google.protobuf import text_format

    prompt = text_format.Parse(text, schema.ModelConfig()).input[2]
    assert (prompt.name, list(prompt.dims), list(prompt.reshape.shape)) == ("prompt", [1], [])
    assert prompt.HasField("reshape")


def test_triton(tmp_path):
    embedder = model()
    ToTriton(name="mine", batch=16)(embedder, tmp_path)
    text = (tmp_path / "mine" / "config.pbtxt").read_text()
    assert "preferred_batch_size: [ 4, 8, 16 ]" in text and "dims: [ 32 ]" in text
    session = onnxruntime.InferenceSession(str(tmp_path / "mine" / "1" / "model.onnx"))
    ids = embedder.encoder.tokenize(["short"])[0][None].astype(np.int64)
    (vector,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert np.abs(vector - embedder.encode(["short"])).max() < 1e-5
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the schema comes with tritonclient")
    from google.protobuf import text_format

    config = text_format.Parse(text, schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("mine", "onnxruntime", 16)
    assert [(i.name, list(i.dims)) for i in config.input] == [("input_ids", [-1]), ("attention_mask", [-1])]
    assert [(o.name, list(o.dims)) for o in config.output] == [("sentence_embedding", [32])]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8, 16]


def command(*arguments: str, cwd) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "unitsphere", "export", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_leaves_a_whole_folder_or_none(tmp_path):
    artefact.save(model(), tmp_path / "mine")
    done = command("model=mine", "to=onnx", cwd=tmp_path)
    assert done.returncode == 0 and "outputs/exports/mine/onnx" in done.stdout
    assert (
        np.abs(artefact.load(tmp_path / "outputs/exports/mine/onnx").encode(TEXTS) - model().encode(TEXTS)).max() < 1e-5
    )
    again = command("model=mine", "to=onnx", cwd=tmp_path)
    assert again.returncode == 2 and "something already" in again.stderr
    exact = command("model=mine", "to=onnx", "to.tolerance=0", "out=exact", cwd=tmp_path)
    assert exact.returncode == 2 and "nothing is written" in exact.stderr
    assert not (tmp_path / "exact").exists() and not (tmp_path / "exact.writing").exists()
    wrong = command("model=mine", "to=onxn", cwd=tmp_path)
    assert wrong.returncode == 2 and "Did you mean 'onnx'" in wrong.stderr
