"""Against forgetting: the two pulls to the start against their formulas, exactly resumed, and general rows mixed in."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from conftest import command, composed
from made_runs import METRIC, made
from made_runs import pairs as scored_pairs
from making import batch_of_texts, encoded, model
from test_training import overrides, run_here
from unitsphere import artefact
from unitsphere.cli.train import go, start
from unitsphere.data.rows import Rows
from unitsphere.data.samplers import Mixed
from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.losses.anchored import Anchored
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.l2sp import L2SP
from unitsphere.losses.matryoshka import Matryoshka
from unitsphere.losses.mlm import MaskedLM
from unitsphere.losses.simcse import SimCSE
from unitsphere.pooling.cls import CLSMLPPooling
from unitsphere.pooling.mean import MeanPooling
from unitsphere.pooling.windows import PositionWindows
from unitsphere.report.records import find
from unitsphere.report.sheet import sheet
from unitsphere.runs import Run
from unitsphere.types import Text


def moved(loss, seed=0):
    """A model and its loss, after the model has moved away from its start; and that start."""
    embedder, start = model(dropout=0.0), model(dropout=0.0).eval()
    loss.attach(embedder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in embedder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return embedder, start, loss.train()


def test_l2sp_is_its_formula():
    embedder, start, loss = moved(L2SP(InfoNCE(), weight=0.3))
    e = encoded(embedder, batch_of_texts(), loss)
    out, inner = loss(e), InfoNCE()(e)
    before = dict(start.encoder.named_parameters())
    total = 0.0
    for name, p in embedder.encoder.named_parameters():
        for x, y in zip(p.detach().flatten().tolist(), before[name].detach().flatten().tolist(), strict=True):
            total += (x - y) ** 2
    assert (out.total - inner.total).item() == pytest.approx(0.15 * total, rel=1e-4)
    assert float(out.parts["moved"]) == pytest.approx(total**0.5, rel=1e-4) and "negatives" in out.parts
    name, p = next((n, p) for n, p in embedder.encoder.named_parameters() if p.ndim > 1)
    (pull,) = torch.autograd.grad(out.total - inner.total, p)
    torch.testing.assert_close(pull, 0.3 * (p - before[name]), atol=1e-5, rtol=1e-4)


def test_l2sp_pulls_what_is_trained():
    embedder = model(dropout=0.0)
    frozen = next(embedder.encoder.parameters()).requires_grad_(False)
    loss = L2SP(InfoNCE())
    loss.attach(embedder)
    with torch.no_grad():
        frozen.add_(1.0)
    assert float(loss(encoded(embedder, batch_of_texts(), loss)).parts["moved"]) == 0.0


@pytest.mark.parametrize("inner", [InfoNCE, SimCSE])
def test_anchored_is_its_formula(inner):
    embedder, start, loss = moved(Anchored(inner(), weight=0.7))
    batch = batch_of_texts()
    e = encoded(embedder, batch, loss)
    out = loss(e)
    columns = {"anchor": e.anchors * (2 // len(e.anchors)), "positive": (e.positives,), "negative": (e.negatives,)}
    off = []
    for column in ("anchor", "positive", "negative") if inner is InfoNCE else ("anchor",):
        then = start.encode(batch.texts[column])
        for now in columns[column][: loss.views]:
            off += [1 - np.dot(a, b) for a, b in zip(now.detach().numpy(), then, strict=True)]
    assert len(off) == (6 + 6 + 3 if inner is InfoNCE else 12)
    assert (out.total - inner()(e).total).item() == pytest.approx(0.7 * np.mean(off), abs=1e-5)
    assert float(out.parts["drift"]) == pytest.approx(np.mean(off), abs=1e-5) and np.mean(off) > 0.001


@pytest.mark.parametrize("inner", [InfoNCE, SimCSE])
def test_whole_documents_are_pulled_to_where_they_were(inner):
    """Texts of many windows: nothing has drifted before the first step, and each text is read once by the frozen copy."""
    encoder = tiny(dropout=0.0, max_length=8)
    embedder = Embedder(encoder, MeanPooling(encoder.dim), windows=PositionWindows(encoder, encoder.dim, overlap=2))
    loss = Anchored(inner())
    loss.attach(embedder)
    batch = batch_of_texts(words=("a long text that goes on for many windows", "short"))
    tokens = {c: [Text(i) for i in encoder.tokenize(texts)] for c, texts in batch.texts.items()}
    batch = replace(batch, tokens=tokens)
    assert max(len(text.ids) for text in tokens["anchor"]) > 30
    read = []
    loss.start[0].register_forward_pre_hook(lambda _, given: read.append(len(given[0].ids)))
    e = encoded(embedder.train(), batch, loss)
    assert float(loss(e).parts["drift"]) == pytest.approx(0, abs=1e-6)
    columns = ("anchor", "positive", "negative") if inner is InfoNCE else ("anchor",)
    assert sum(read) == sum(len(embedder.windows.split(tokens[column]).windows) for column in columns)


def test_the_anchor_has_the_head_that_is_used_in_training_only():
    encoder = tiny(dropout=0.0)
    embedder, loss = Embedder(encoder, CLSMLPPooling(encoder.dim, train_only=True)).train(), Anchored(InfoNCE())
    loss.attach(embedder)
    assert float(loss(encoded(embedder, batch_of_texts(), loss)).parts["drift"]) == pytest.approx(0, abs=1e-6)


def test_the_anchor_stays_where_it_was():
    """The frozen copy has no dropout, is no part of what is trained or saved, and does not follow the embedder."""
    embedder = model(dropout=0.5)
    loss = Anchored(InfoNCE())
    loss.attach(embedder)
    loss.train()
    assert not list(loss.parameters()) and not loss.state_dict() and not L2SP(InfoNCE()).state_dict()
    first = loss.start[0].encode(["a tree"])
    with torch.no_grad():
        for p in embedder.parameters():
            p.zero_()
    assert not loss.start[0].training and np.array_equal(loss.start[0].encode(["a tree"]), first)


@pytest.mark.parametrize("wrapper", [L2SP, Anchored])
def test_a_weight_of_nothing_is_the_inner_loss(wrapper):
    embedder, _, loss = moved(wrapper(InfoNCE(), weight=0.0))
    gradients = []
    for one in (loss, InfoNCE()):
        embedder.zero_grad()
        total = one(encoded(embedder, batch_of_texts(), one)).total
        total.backward()
        gradients.append([total.detach(), *(p.grad.clone() for p in embedder.parameters() if p.grad is not None)])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@pytest.mark.parametrize("wrapper", [L2SP, Anchored])
def test_a_strong_pull_brings_the_model_back(wrapper):
    embedder, _, loss = moved(wrapper(InfoNCE(), weight=1e3))
    part = "moved" if wrapper is L2SP else "drift"
    optimizer = torch.optim.Adam(embedder.parameters(), lr=3e-3)
    seen = []
    for _ in range(30):
        out = loss(encoded(embedder, batch_of_texts(), loss))
        seen.append(float(out.parts[part]))
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    assert seen[-1] < 0.5 * seen[0]


def test_what_does_not_fit():
    for wrapper in (L2SP, Anchored):
        with pytest.raises(UsageError, match=r"loss.weight=-1: 0 or more would fit"):
            wrapper(InfoNCE(), weight=-1)
        with pytest.raises(UsageError, match="one width only"):
            Matryoshka(wrapper(InfoNCE()), [8])
    with pytest.raises(UsageError, match="reads no vectors"):
        Anchored(MaskedLM(None))


class Cut(Exception):
    """What ends a run in the middle."""


@pytest.mark.parametrize("loss", ["l2sp", "anchored"])
def test_a_cut_run_goes_on_pulling_to_its_first_start(pairs, tmp_path, loss):
    from pytorch_lightning import Callback

    class Cutter(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                raise Cut

    more = (f"loss={loss}", "loss.weight=5.0", "trainer.max_steps=8", "~callbacks.progress")
    whole = run_here(pairs, tmp_path / "whole", *more)
    cut = start(composed(*overrides(pairs, tmp_path / "cut", *more)), [], {})
    with pytest.raises(Cut):
        go(cut, [Cutter()])
    assert cut.info["status"] == "failed"
    from unitsphere.training.run import train

    train(cut.config, cut)
    assert cut.metrics == whole.metrics and cut.info["looks"] == whole.info["looks"]
    part = "train/moved" if loss == "l2sp" else "train/drift"
    tables = [pd.read_csv(r.folder / "metrics.csv").set_index("metric").loc[part, "value"] for r in (cut, whole)]
    assert tables[0].tolist() == tables[1].tolist() and len(tables[0]) == 8 and tables[0].iloc[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2sp", "anchored"])
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_ranks_pull_like_one(pairs, tmp_path, trainer, loss):
    curves, models = [], []
    for option in ("default", trainer):
        line = overrides(pairs, tmp_path / option, f"trainer={option}", "encoder.depth=2", f"loss={loss}")
        command("train", *line, "loss.weight=5.0", "encoder.dropout=0", "trainer.threads=1")
        (run,) = (Run(f.parent) for f in (tmp_path / option).rglob("run.json"))
        table = pd.read_csv(run.folder / "metrics.csv")
        part = {"l2sp": "train/moved", "anchored": "train/drift"}[loss]
        curves.append(table[table.metric.isin(["train/loss", part])].value.to_numpy())
        models.append(artefact.load(run.folder).encode(["a red fish", "x"]))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4) and len(curves[0]) == 24
    assert models[0] == pytest.approx(models[1], abs=1e-3)


def some(**tasks):
    names = [task for task, count in tasks.items() for _ in range(count)]
    return Rows(anchor=[f"a{i}" for i in range(len(names))], task=names)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_batch_has_its_share():
    rows = some(domain=103, general=11, other=40)
    batches = Mixed({"general": 0.25})(rows, 16, generator())
    assert batches.shape == (143 // 12, 16)
    drawn = np.array(rows.task, dtype=object)[batches]
    assert ((drawn == "general").sum(axis=1) == 4).all()
    uses = np.bincount(batches.ravel(), minlength=len(rows))
    general = np.array(rows.task, dtype=object) == "general"
    assert uses[~general].max() == 1 and uses[general].sum() == 44 and uses[general].min() > 0
    assert all(len({*batch}) == 16 for batch in batches)  # also where the general rows have run out
    places = (drawn == "general").sum(axis=0)
    assert places.min() > 0 or len(batches) < 20  # not always in the same places, so every rank gets some


def test_the_order_is_a_function_of_the_generator():
    rows = some(domain=60, general=20)
    one, same, other = (Mixed({"general": 0.25})(rows, 8, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_shares_of_all_tasks():
    batches = Mixed({"general": 0.25, "domain": 0.75})(some(domain=60, general=20), 8, generator())
    assert batches.shape == (10, 8) and ((batches < 60).sum(axis=1) == 6).all()


def test_shares_that_are_one_in_all_fill_the_batch():
    rows = some(a=120, b=60, c=20)
    batches = Mixed({"a": 0.6, "b": 0.3, "c": 0.1})(rows, 64, generator())
    counts = [[(np.array(rows.task)[batch] == task).sum() for task in "abc"] for batch in batches]
    assert batches.shape == (200 // 64, 64) and counts == [[38, 20, 6]] * 3


@pytest.mark.parametrize(
    ("weights", "rows", "message"),
    [
        ({}, some(a=20, b=20), "shares above 0"),
        ({"a": 1.5}, some(a=20, b=20), "at most 1 in all"),
        ({"c": 0.5}, some(a=20, b=20), "no task 'c' in the data; known: a, b"),
        ({"a": 0.5}, replace(some(a=20), task=None), "known: none; data=mixture has tasks"),
        ({"a": 0.01}, some(a=20, b=20), "is 0 rows of a batch of 8; 1 to 20"),
        ({"a": 0.5}, some(a=3, b=20), "is 4 rows of a batch of 8; 1 to 3"),
        ({"a": 0.5, "b": 0.25}, some(a=20, b=20), "leaves 2 rows of a batch of 8 to the other tasks, which have 0"),
        ({"a": 1.0}, some(a=20, b=20), "leaves 0 rows of a batch of 8 to the other tasks, which have 20"),
    ],
)
def test_weights_that_do_not_fit(weights, rows, message):
    with pytest.raises(UsageError, match=message):
        Mixed(weights)(rows, 8, generator())


def test_a_domain_with_general_pairs_trains_from_the_command_line(pairs, tmp_path):
    line = [
        "encoder=tiny", "loss=infonce", "data=mixture", "data.batch_size=16", "sampler=mixed", "trainer.max_steps=3",
        "+sampler.weights.general=0.25", "+data@data.sources.domain=pairs", f"data.sources.domain.path={pairs}",
        "+data@data.sources.general=triplets", f"data.sources.general.path={pairs}", "data.sources.general.held_out=0",
        "trainer.accelerator=cpu", f"outputs={tmp_path}", "leakage.action=report",
    ]  # fmt: skip
    run = start(composed(*line), [], {})
    go(run)
    assert run.info["status"] == "done" and any(key.startswith("test/") for key in run.metrics)


def test_what_was_gained_and_what_was_forgotten_stand_in_one_table(tmp_path):
    folder = made(tmp_path, level=0.5, noise=4.0)
    general = scored_pairs(np.random.default_rng(7), 1.0)
    general.to_parquet(folder / "scores/before/sts-stsb.parquet")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["before/sts/stsb"] = float(stats.spearmanr(general.prediction, general.score).statistic)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    table = sheet(find([tmp_path]), metrics=["docs/*", "sts/stsb"], baseline="before")
    gained, forgotten = (cell.difference for (cells,) in [table.rows.values()] for cell in cells)
    assert table.columns == (METRIC, "sts/stsb") and gained.low > 0 > forgotten.high
    assert forgotten.value == pytest.approx(metrics["test/sts/stsb"] - metrics["before/sts/stsb"])
