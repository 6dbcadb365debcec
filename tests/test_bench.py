"""What a benchmark counts is what there is to count; how long it took is no test's matter."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AlbertModel

from conftest import command
from unitsphere.bench import peak
from unitsphere.bench.child import measured
from unitsphere.bench.meter import Meter
from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.pooling.mean import MeanPooling
from unitsphere.report import bench
from unitsphere.runs import Run
from unitsphere.types import Text


def test_flops_are_those_that_torch_counts():
    model = (
        tiny(dim=64, depth=3).model.eval().double()
    )  # whose products and, below, attention are torch's, which it counts
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        model(input_ids=torch.full((4, 20), 7))
    assert peak.forward_flops(model, 4 * 20, 4 * 20**2) == pytest.approx(counted.get_total_flops())


def test_a_layer_that_is_used_twice_counts_twice():
    config = AlbertConfig(
        vocab_size=50,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = AlbertModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted:
        model(input_ids=torch.full((4, 20), 7))
    assert peak.forward_flops(model, 4 * 20, 4 * 20**2) == pytest.approx(counted.get_total_flops())


def test_what_is_frozen_has_no_gradient_to_compute():
    model = tiny(dim=64, depth=3).model.double()
    forward = peak.forward_flops(model, 80, 4 * 20**2)
    assert peak.step_flops(model, 80, 4 * 20**2) == pytest.approx(3 * forward)
    model.requires_grad_(False)
    model.set_attn_implementation("eager")
    states = model.get_input_embeddings()(torch.full((4, 20), 7)).requires_grad_()
    with FlopCounterMode(display=False) as counted:
        model(inputs_embeds=states).last_hidden_state.sum().backward()
    assert peak.step_flops(model, 80, 4 * 20**2) == pytest.approx(counted.get_total_flops())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", "float32"), ("bf16-mixed", "bfloat16"), ("16-mixed", "float16")]
)
def test_a_precision_is_held_against_its_own_peak(precision, dtype):
    assert peak.multiplied_in(precision) == dtype and dtype in peak.DTYPES


def test_a_meter_that_saw_no_text_or_no_end_says_so():
    encoder = tiny()
    meter = Meter(encoder.model, Embedder(encoder, MeanPooling(encoder.dim)), lambda args: args[0].mask)
    meter.start()
    with pytest.raises(UsageError, match="ended before the last of the samples"):
        meter.rate("samples", 5)
    meter.stop()
    assert meter.numbers("samples", 5, trains=True).keys() == {"samples/s", "peak MiB"}


def test_flops_of_unequal_lengths_are_the_sum_of_those_of_each():
    model = tiny().model
    alone = [peak.forward_flops(model, n, n * n) for n in (3, 50, 7)]
    assert peak.forward_flops(model, 60, 9 + 2500 + 49) == pytest.approx(sum(alone))


@pytest.mark.parametrize("packs", [False, True])
def test_a_meter_counts_tokens_and_the_padding_that_is_computed(packs):
    encoder = tiny()
    embedder = Embedder(encoder, MeanPooling(encoder.dim)).train()
    encoder.pack(2 if packs else None)
    meter = Meter(encoder.model, embedder, lambda args: args[0].mask)
    with meter.model():
        embedder(encoder.pad([*map(text, (3, 9))]))  # before it counts
    meter.start()
    with meter.model():
        embedder(encoder.pad([*map(text, (4, 8, 12))]))
        embedder(encoder.pad([*map(text, (5, 5))]))
    meter.stop()
    with meter.model():
        embedder(encoder.pad([*map(text, (30, 90))]))  # and after
    numbers = meter.numbers("samples", 5, trains=True)
    assert numbers["tokens/s"] / numbers["samples/s"] == pytest.approx((24 + 10) / 5)
    assert numbers["padding %"] == pytest.approx(0 if packs else 100 * (1 - 34 / (36 + 10)))
    flops = peak.forward_flops(encoder.model, 34, 16 + 64 + 144 + 25 + 25)
    assert numbers["FLOP/s"] / numbers["samples/s"] == pytest.approx(3 * flops / 5)
    assert 0 <= numbers["outside the model %"] < 100 and numbers["peak MiB"] > 0
    again = meter.numbers("samples", 5, trains=True, reads=2)
    assert again["padding %"] == numbers["padding %"]
    assert all(again[name] == pytest.approx(numbers[name] / 2) for name in ("tokens/s", "FLOP/s"))


def text(length):
    return Text(np.arange(5, 5 + length))


def test_a_summary_has_medians_and_the_ratio_within_each_round():
    turns = pd.DataFrame(
        {
            "round": [0, 0, 1, 1, 2, 2],
            "contender": ["ours", "theirs"] * 3,
            "samples/s": [20.0, 10.0, 90.0, 30.0, 8.0, 2.0],
            "FLOP/s": [2e9, 1e9, 9e9, 3e9, 8e8, 2e8],
            "peak FLOP/s": [5e9, 5e9, 1e10, 9e9, 1e9, 1e9],
            "dtype": "float32",
        }
    )
    table = bench.summary(turns, "theirs", "samples/s")
    assert list(table.index) == ["ours", "theirs"]
    assert table.loc["ours", ["samples/s", "from", "to", "x"]].tolist() == [20.0, 8.0, 90.0, 3.0]
    assert table.loc["theirs", "x"] == 1
    later = bench.summary(turns.assign(**{"samples/s": 1.0, "late": turns["samples/s"]}), "theirs", "late")
    assert list(later.columns)[-5:-2] == ["late", "from", "to"]
    assert table.loc["ours", "MFU %"] == pytest.approx(20.0)  # 2e9 of the best 1e10


def test_a_failure_in_a_process_of_its_own_is_told():
    with pytest.raises(UsageError, match="no_such_function"):
        measured("unitsphere.bench.peak.no_such_function", OmegaConf.create({}), 1, {})


@pytest.mark.slow
def test_training_and_embedding_are_measured_beside_a_variant_and_the_peer(tmp_path, pairs):
    data = ["data=pairs", f"data.path={pairs}", "data.batch_size=8", "rounds=1", "threads=1"]
    steps = ["bench.options.steps=2", "bench.options.warm=1", "encoder=tiny", "loss=infonce"]
    line = ["bench", "train", "peer=sentence_transformers", *data, *steps, "variant.padded.trainer.packed=false"]
    done = command(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "bench" / "train").iterdir()
    assert Run.open(folder).info["status"] == "done"
    turns = pd.read_csv(folder / "rounds.csv")
    assert sorted(turns["contender"].unique()) == ["padded", "sentence_transformers", "unitsphere"]
    assert len(turns) == 3 and (turns["samples/s"] > 0).all()
    padding = turns.groupby("contender")["padding %"].max()
    assert padding["unitsphere"] < 3.2 and padding["padded"] > 0 and padding["sentence_transformers"] > 0
    assert "unitsphere/samples/s" in json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_several_ranks_are_one_contender(tmp_path, pairs):
    data = ["data=pairs", f"data.path={pairs}", "data.batch_size=8", "rounds=1", "threads=1"]
    steps = ["bench.options.steps=2", "bench.options.warm=1", "encoder=tiny", "loss=infonce"]
    two = ["variant.two.trainer=ddp", "variant.two.trainer.accelerator=cpu"]
    done = command("bench", "train", *data, *steps, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "bench" / "train").iterdir()
    turns = pd.read_csv(folder / "rounds.csv").set_index("contender")
    assert list(turns.index) == ["unitsphere", "two"] and (turns["samples/s"] > 0).all()
    assert turns["tokens/s"].isna().tolist() == [False, True]


@pytest.mark.slow
def test_mining_is_measured(tmp_path, pairs):
    done = command("bench", "mine", "encoder=tiny", "data=pairs", f"data.path={pairs}", "rounds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "bench" / "mine").iterdir()
    turns = pd.read_csv(folder / "rounds.csv")
    assert (turns["pairs/s"] > 0).all() and (turns["seconds"] > 0).all()


@pytest.mark.slow
def test_a_peer_or_an_override_that_does_not_fit_is_said(tmp_path):
    for line, what in (
        (["bench", "train", "peer=nobody"], "sentence_transformers would fit"),
        (["bench", "train", "loss=nonsense"], "nonsense"),
        (["bench", "nothing"], "nothing"),
        (["bench", "encode", "rounds=1"], "data="),
        (["bench", "train", "rounds=0"], "rounds=0"),
        (["bench", "train", "-cd", ".", "rounds=0", "loss=simcse"], "rounds=0"),
        (["bench", "train", "encoder=tiny", "--config-dir=.", "rounds=0"], "rounds=0"),
        (["bench", "train", "bench.options.warm=0"], "warm=0"),
        (
            [
                "bench",
                "train",
                "peer=sentence_transformers",
                "encoder=tiny",
                "loss=infonce",
                "loss.symmetric=true",
                "threads=1",
                "bench.options.steps=1",
                "bench.options.warm=1",
            ],
            "with loss.symmetric",
        ),
    ):
        done = command(*line, check=False, cwd=tmp_path)
        assert done.returncode == 2 and what in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
