"""Whole runs on the tiny encoder: they learn, survive a kill, reproduce, and leave a folder that can be read."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import DeepSpeedPrecision, HalfPrecision
from safetensors.torch import load_file
from torch import nn

from conftest import command, composed
from making import batch_of_texts
from unitsphere import artefact
from unitsphere.cli.reproduce import changes, reproduce
from unitsphere.cli.train import start
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import InfoNCE
from unitsphere.report.records import read
from unitsphere.runs import Run
from unitsphere.training import trainer as training
from unitsphere.training.alarm import CollapseAlarm
from unitsphere.training.module import EmbeddingModule
from unitsphere.training.optim import AdamW, PagedAdamW8bit, parameter_groups
from unitsphere.training.run import check_needs, train
from unitsphere.training.selection import Selection


def overrides(pairs, outputs, *more):
    return [
        "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={pairs}", "data.batch_size=16", "trainer.max_steps=12",
        "optim.lr=0.003", "trainer.log_every_n_steps=1", "callbacks.selection.every=4", "callbacks.selection.save_every=2",
        "trainer.accelerator=cpu", f"outputs={outputs}", *more,
    ]  # fmt: skip


def run_here(pairs, outputs, *more) -> Run:
    run = start(composed(*overrides(pairs, outputs, *more)), [], {})
    train(run.config, run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    rows = [
        {"anchor": f"number {i} of {i % 7}", "positive": f"it is {i} or {i % 5}", "negative": f"{i + 1}"}
        for i in range(120)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    os.environ["UNITSPHERE_CACHE"] = str(folder / "cache")
    return run_here(folder / "rows.jsonl", folder / "out", "optim.lr=0.006")


def test_a_run_learns_and_leaves_a_readable_folder(finished):
    metrics, info = finished.metrics, finished.info
    curves = pd.read_csv(finished.folder / "metrics.csv")
    loss = curves[curves.metric == "train/loss"].value
    assert loss.tail(3).mean() < loss.head(3).mean()
    assert (
        info["status"] == "done" and info["steps"] == 12 and [look["step"] for look in info["looks"]] == [0, 4, 8, 12]
    )
    best = max(info["looks"], key=lambda look: look["metrics"]["pairs/mrr@10"])
    assert info["best_step"] == best["step"] < 12  # so that the last step's model is another one, and scored too
    assert metrics["dev/pairs/mrr@10"] == best["metrics"]["pairs/mrr@10"]
    for stage in ("before", "test", "last"):
        items = pd.read_parquet(finished.folder / "scores" / stage / "pairs.parquet")
        assert items["mrr@10"].mean() == pytest.approx(metrics[f"{stage}/pairs/mrr@10"])
    assert info["protocol"]["pairs"]["similarity"] == "cosine" and info["embedder"]["pooling"] == "MeanPooling"
    assert info["data"]["train"]["rows"] == 96 and len(info["data"]["test"]["sha256"]) == 64
    assert info["versions"]["torch"] == torch.__version__
    assert finished.config.trainer.threads >= 1 and finished.config.trainer.precision == "32-true"


def test_a_last_step_that_is_the_best_is_scored_by_query_too(pairs, tmp_path):
    run = run_here(pairs, tmp_path, "select=last", "trainer.max_steps=2")
    last, test = (pd.read_parquet(run.folder / "scores" / stage / "pairs.parquet") for stage in ("last", "test"))
    pd.testing.assert_frame_equal(last, test)


def test_a_run_that_was_cut_in_its_last_look_at_dev_looks_again(pairs, tmp_path, monkeypatch):
    settings = ("callbacks.selection.every=8", "callbacks.selection.save_every=6")
    whole = run_here(pairs, tmp_path / "whole", *settings)
    score, looked = EmbeddingModule.score_dev, []

    def cut(self):
        looked.append(self.trainer.global_step)
        if looked == [0, 8, 12]:
            raise RuntimeError("cut")
        return score(self)

    monkeypatch.setattr(EmbeddingModule, "score_dev", cut)
    run = start(composed(*overrides(pairs, tmp_path / "cut", *settings)), [], {})
    with pytest.raises(RuntimeError, match="cut"):
        train(run.config, run)
    train(run.config, run)
    assert looked == [0, 8, 12, 12]
    assert (run.info["looks"], run.metrics) == (whole.info["looks"], whole.metrics)


def test_the_saved_model_is_the_best_checkpoint(finished):
    best = load_file(finished.folder / "checkpoints" / "best.safetensors")
    for name, value in artefact.load(finished.folder).state_dict().items():
        assert torch.equal(value, best[name]), name


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_numbers(finished, tmp_path):
    done = command("reproduce", finished.folder, f"outputs={tmp_path}", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ (to the last digit demanded)" in done.stdout
    again = Run(next((tmp_path / "test").iterdir()))
    assert again.metrics == finished.metrics and again.info["reproduces"] == str(finished.folder)


@pytest.mark.slow
def test_a_number_that_does_not_reproduce_is_found(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished.folder), str(copy)], check=True)
    Run(copy).add_metrics({"test/pairs/mrr@10": 0.123456})
    done = command("reproduce", copy, f"outputs={tmp_path}/again", check=False)
    assert done.returncode == 1 and "DIFFERS" in done.stdout and "1 differ" in done.stdout
    was = read(finished.folder)
    other = replace(was, info={**was.info, "versions": {**was.info["versions"], "torch": "1.0"}, "threads": 99})
    now = was.info["versions"]["torch"]
    assert changes(was, other) == {"threads": (str(was.info["threads"]), "99"), "torch": (now, "1.0")}


def killed(line, folder, at_step):
    """Start a run in a process of its own and kill it when its checkpoint has reached a step."""
    process = subprocess.Popen([sys.executable, "-m", "unitsphere", "train", *line], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for file in Path(folder).glob("*/*/checkpoints/last.ckpt"):
            if torch.load(file, weights_only=True)["global_step"] >= at_step:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return file.parents[1]
        time.sleep(0.02)
    raise AssertionError("the run ended before it could be killed")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_resumes_to_the_same_numbers(pairs, tmp_path, accumulate):
    line = overrides(pairs, tmp_path / "cut", f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_steps=40")
    folder = killed(line, tmp_path / "cut", 6)
    assert Run(folder).info["status"] == "killed"
    command("train", f"resume={folder}")
    whole = run_here(pairs, tmp_path / "whole", f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_steps=40")
    resumed = Run(folder)
    assert resumed.info["status"] == "done" and resumed.metrics == whole.metrics
    assert resumed.info["looks"] == whole.info["looks"]
    curves = [pd.read_csv(r.folder / "metrics.csv").sort_values(["metric", "step"]) for r in (resumed, whole)]
    pd.testing.assert_frame_equal(*(c.reset_index(drop=True) for c in curves))
    with pytest.raises(UsageError, match="this run is done"):
        from unitsphere.cli.train import resume

        resume(str(folder))


@pytest.mark.slow
def test_resume_refuses_other_data_and_other_settings(pairs, tmp_path):
    folder = killed(overrides(pairs, tmp_path / "cut", "trainer.max_steps=40"), tmp_path / "cut", 4)
    done = command("train", f"resume={folder}", "optim.lr=1", check=False)
    assert done.returncode == 2 and "leave out optim.lr=1" in done.stderr
    pairs.write_text(pairs.read_text().replace("number", "figure"))
    done = command("train", f"resume={folder}", check=False)
    assert done.returncode == 2 and "the data is not what this run was trained on" in done.stderr


def test_a_run_that_is_being_worked_on_is_left_alone(finished):
    other = Run(finished.folder)
    with finished.lock(), pytest.raises(UsageError, match="another process"), other.lock():
        pass


def test_two_runs_in_one_second_have_two_folders(tmp_path):
    folders = {Run.create(tmp_path, "s1").folder for _ in range(5)}
    assert len(folders) == 5 and all(f.is_dir() for f in folders)


def test_training_that_hurts_is_seen(pairs, tmp_path):
    """With an absurd learning rate the untrained model is the best, and it is the one that is kept."""
    run = run_here(pairs, tmp_path, "optim.lr=3.0", "trainer.max_steps=4")
    metrics = run.metrics
    assert run.info["best_step"] == 0
    assert metrics["test/pairs/mrr@10"] == metrics["before/pairs/mrr@10"] != metrics["last/pairs/mrr@10"]


def test_init_keeps_pooling_projection_and_prompts(pairs, tmp_path):
    """What is saved is what was scored, though the new run's configuration says mean pooling without prompts."""
    options = ["pooling=cls_mlp", "embedder.projection_dim=9", "embedder.prompts.query='ask: '", "trainer.max_steps=1"]
    first = run_here(pairs, tmp_path, *options)
    second = run_here(
        pairs, tmp_path, f"init={first.folder}", "trainer.max_steps=2", "optim.lr=0", "encoder.dropout=0.3"
    )
    a, b = artefact.load(first.folder), artefact.load(second.folder)
    assert a.protocol() == b.protocol() and b.dim == 9 and b.prompts["query"] == "ask: "
    assert a.encode(["x y"], "query") == pytest.approx(b.encode(["x y"], "query"), abs=1e-6)
    assert second.metrics["before/pairs/mrr@10"] == first.metrics["test/pairs/mrr@10"]


def test_a_failed_run_says_so(pairs, tmp_path):
    run = start(composed(*overrides(pairs, tmp_path, "select=nothing")), [], {})
    with pytest.raises(UsageError, match="select=nothing: dev has pairs/mrr@10"):
        train(run.config, run)
    assert run.info["status"] == "failed" and "select=nothing" in run.info["error"]


@pytest.mark.parametrize(
    ("evals", "said"), [("none", "eval is empty"), ("map", r"what eval names \(map\) scores nothing on dev")]
)
def test_dev_that_scores_nothing_is_found_before_a_model_is_loaded(pairs, tmp_path, monkeypatch, evals, said):
    monkeypatch.setattr("unitsphere.training.run.build_embedder", None)
    run = start(composed(*overrides(pairs, tmp_path, f"eval={evals}")), [], {})
    with pytest.raises(UsageError, match=f"{said}, so dev cannot choose a checkpoint"):
        train(run.config, run)


def test_a_run_whose_looks_were_bounded_by_time_is_not_reproduced(pairs, tmp_path):
    run = start(composed(*overrides(pairs, tmp_path, "eval_seconds=100")), [], {})
    run.note(status="done", protocol={"pairs": {}})
    with pytest.raises(UsageError, match="bounded by eval_seconds"):
        reproduce(run, 0.0)


def test_a_loss_that_the_data_cannot_feed(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"no positive \(it has anchor\).*data=beir\|docstrings\|instructions\|mixture\|pairs\|parallel\|scored\|triplets",
    ):
        check_needs(InfoNCE(), ["anchor"])


def test_biases_and_norms_do_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, kept = parameter_groups(module, 0.1)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 3 and kept["weight_decay"] == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule, expected):
    optimizer, scheduler = AdamW(lr=1.0, schedule=schedule, warmup=1 / 3)(nn.Linear(2, 2), 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_a_fused_step_is_the_plain_step():
    def stepped(fused):
        torch.manual_seed(0)
        layer = nn.Linear(30, 20)
        optimizer, _ = AdamW(lr=0.1, weight_decay=0.1, schedule="constant", fused=fused)(layer, 3)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.linspace(-1, 1, 30)).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(stepped(True), stepped(False), atol=1e-6, rtol=1e-5)


def test_the_8_bit_optimiser_gets_the_settings_or_says_what_is_missing(monkeypatch):
    make = PagedAdamW8bit(lr=0.5, weight_decay=0.1, schedule="constant")
    if find_spec("bitsandbytes") is None:
        with pytest.raises(UsageError, match="pip install bitsandbytes"):
            make(nn.Linear(2, 2), 6)
    library = ModuleType("bitsandbytes.optim")
    library.PagedAdamW8bit = torch.optim.AdamW
    monkeypatch.setattr("unitsphere.training.optim.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    optimizer, _ = make(nn.Linear(2, 2), 6)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (0.5, 0.1, 1),
        (0.5, 0.0, 1),
    ]


def test_optimiser_settings_that_do_not_fit():
    with pytest.raises(UsageError, match="linear, cosine"):
        AdamW(lr=1.0, schedule="wavy")
    with pytest.raises(UsageError, match="number of steps is not known"):
        AdamW(lr=1.0)(nn.Linear(2, 2), float("inf"))
    AdamW(lr=1.0, schedule="constant")(nn.Linear(2, 2), float("inf"))


def test_the_alarm_rings_on_a_collapsed_space_only():
    class Stub:
        global_step = 0

    trainer, alarm = Stub(), CollapseAlarm(threshold=0.9, patience=2, every=2)

    def see(step, cosine):
        trainer.global_step, trainer.callback_metrics = step, {"train/mean_cosine": cosine}
        alarm.on_train_batch_end(trainer, None, None, None, 0)

    for step, cosine in ((0, 0.95), (2, 0.95), (2, 0.95), (3, 0.95), (4, 0.5), (5, 0.95), (6, 0.95), (7, 0.95)):
        see(step, cosine)  # one look in a row at most: step 2 comes twice where gradients are added up
    with pytest.warns(UserWarning, match="COLLAPSE"):
        see(8, 0.95)


def test_selection_refuses_nonsense():
    with pytest.raises(UsageError, match="must be positive"):
        Selection(every=0)
    with pytest.raises(UsageError, match="max or min"):
        Selection(mode="best")


def test_tensorboard_is_written_beside_the_curves(pairs, tmp_path):
    run = run_here(pairs, tmp_path, "logger=tensorboard", "trainer.max_steps=2", "trainer.log_every_n_steps=1")
    assert list(run.folder.glob("**/events.*")) and (run.folder / "metrics.csv").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_a_processor_without_bfloat16_is_named(precision, monkeypatch):
    monkeypatch.setattr(training, "BF16", False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        training.Trainer(threads=1, chunks=1, accelerator="cpu", precision=precision, logger=False)
    assert any("no bfloat16 arithmetic" in str(one.message) for one in said) == precision.startswith("bf16")


def test_mixed_precision_trains(pairs, tmp_path):
    run = run_here(pairs, tmp_path, "trainer.precision=bf16-mixed", "trainer.max_steps=2")
    assert run.info["status"] == "done"


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "attention", "cls_mlp"])
def test_weights_of_16_bits_train(pairs, tmp_path, pooling):
    settings = ("embedder.projection_dim=16", "trainer.precision=bf16-true", "trainer.max_steps=2")
    run = run_here(pairs, tmp_path, f"pooling={pooling}", *settings)
    saved = artefact.load(run.folder)
    assert saved.dtype == torch.bfloat16 and saved.encode(["a red fish"]).shape == (1, 16)


@pytest.mark.parametrize("plugin", [HalfPrecision("16-true"), DeepSpeedPrecision("bf16-mixed")])
def test_a_precision_plugin_leaves_batches_as_they_are(plugin):
    trainer = training.Trainer(threads=1, chunks=1, accelerator="cpu", plugins=[plugin], logger=False)
    batch = batch_of_texts()
    assert trainer.precision_plugin is plugin and plugin.convert_input(batch) is batch


class Trained(pl.Callback):
    """Notes which weights are trained."""

    def on_train_start(self, trainer, module):
        self.names = {n.removeprefix("embedder.") for n, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["mlm", "infonce"])
def test_what_a_loss_without_vectors_never_reads_is_not_trained(pairs, tmp_path, loss):
    more = (f"loss={loss}", "pooling=attention", "window=learned", "embedder.projection_dim=16", "eval=none")
    config = composed(*overrides(pairs, tmp_path, *more, "select=last", "trainer.max_steps=1"))
    run, trained = start(config, [], {}), Trained()
    train(run.config, run, [trained])
    head = {"pooling.query", "pooling.key.weight", "projection.weight", "windows.query"}
    assert head & trained.names == (head if loss == "infonce" else set())
    assert any(name.startswith("encoder.") for name in trained.names)


@pytest.mark.parametrize("part", ["embedder.projection_dim=16", "window=learned"])
def test_what_reads_what_evaluation_leaves_out_is_not_trained(pairs, tmp_path, part):
    with pytest.raises(UsageError, match=rf"{part.partition('=')[0]}: that would be trained .* set one of them to"):
        run_here(pairs, tmp_path, "pooling=cls_mlp", "pooling.train_only=true", part)


def test_a_run_bounded_by_epochs_or_time(pairs, tmp_path):
    run = run_here(pairs, tmp_path, "trainer.max_epochs=3", "trainer.max_steps=-1")
    assert run.info["steps"] == 3 * (96 // 16)
    timed = run_here(pairs, tmp_path, "trainer.max_time='00:00:00:01'", "trainer.max_steps=100000")
    assert 0 < timed.info["steps"] < 100000
    with pytest.raises(UsageError, match=r"bounded by trainer.max_time"):
        from unitsphere.cli.reproduce import reproduce

        reproduce(timed, 0.0)


@pytest.mark.slow
def test_several_seeds_and_losses_in_one_command(pairs, tmp_path):
    line = [a for a in overrides(pairs, tmp_path, "trainer.max_steps=1") if not a.startswith("loss=")]
    command("train", "-m", *line, "loss=simcse,infonce", "seed=1,2", cwd=tmp_path)
    runs = [Run(f.parent) for f in tmp_path.rglob("run.json")]
    assert len({r.folder for r in runs}) == 4 and all(r.info["status"] == "done" for r in runs)


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "more"), [("ddp", ()), ("ddp", ("trainer.cache_tokens=64",)), ("fsdp", ())])
def test_two_ranks_train_like_one(pairs, tmp_path, trainer, more):
    """Two processes that Lightning starts, without dropout: the same curves, one folder, the same model."""
    curves, models, untrained = [], [], []
    for option in ("default", trainer):
        line = overrides(pairs, tmp_path / option, f"trainer={option}", "encoder.depth=2", "embedder.projection_dim=16")
        command("train", *line, "encoder.dropout=0", "trainer.threads=1", *(more if option == trainer else ()))
        runs = [Run(f.parent) for f in (tmp_path / option).rglob("run.json")]
        assert len(runs) == 1 and runs[0].info["status"] == "done"
        table = pd.read_csv(runs[0].folder / "metrics.csv")
        curves.append(table[table.metric == "train/loss"].value.to_numpy())
        models.append(artefact.load(runs[0].folder).encode(["a red fish", "x"]))
        untrained.append({name: value for name, value in runs[0].metrics.items() if name.startswith("before/")})
    assert untrained[0] == pytest.approx(untrained[1], abs=1e-6) and untrained[0]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4) and len(curves[0]) == 12
    assert models[0] == pytest.approx(models[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_killed_run_of_two_ranks_resumes_to_the_same_numbers(pairs, tmp_path, trainer):
    settings = (f"trainer={trainer}", "trainer.threads=1", "trainer.max_steps=40")
    folder = killed(overrides(pairs, tmp_path / "cut", *settings), tmp_path / "cut", 6)
    command("train", f"resume={folder}")
    command("train", *overrides(pairs, tmp_path / "whole", *settings))
    (whole,) = (Run(f.parent) for f in (tmp_path / "whole").rglob("run.json"))
    resumed = Run(folder)
    assert resumed.info["status"] == "done" and resumed.info["steps"] == 40
    assert resumed.metrics == pytest.approx(whole.metrics, abs=1e-6)
    assert [look["step"] for look in resumed.info["looks"]] == [look["step"] for look in whole.info["looks"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("trainer.cache_tokens=4",), "cache_tokens does not go with trainer=fsdp"),
        (("loss=mlm", "eval=none", "select=last"), "divides the encoder's weights only"),
    ],
)
def test_sharding_refuses_what_it_cannot_do(pairs, tmp_path, more, message):
    line = overrides(pairs, tmp_path, "trainer=fsdp", "trainer.devices=1", *more)
    done = command("train", *line, check=False)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("trainer", ["ddp", "fsdp", "deepspeed"])
def test_every_strategy_starts_on_gpus(pairs, tmp_path, trainer):
    if trainer == "deepspeed":
        pytest.importorskip("deepspeed", reason="not a dependency: pip install deepspeed")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    command("train", *overrides(pairs, tmp_path, f"trainer={trainer}", "trainer.accelerator=gpu"))
    (run,) = (Run(f.parent) for f in tmp_path.rglob("run.json"))
    assert run.info["status"] == "done" and artefact.load(run.folder).encode(["a"]).shape[0] == 1


@pytest.mark.slow
def test_an_evaluation_is_reproduced(finished, tmp_path):
    command("evaluate", f"model={finished.folder}", f"outputs={tmp_path}", "threads=1")
    (evaluation,) = (tmp_path / "evaluations").glob("*/eval_*")
    done = command("reproduce", evaluation, f"outputs={tmp_path / 'again'}")
    (again,) = (tmp_path / "again").iterdir()
    assert Run(again).metrics == Run(evaluation).metrics and "0 differ (to the last digit demanded)" in done.stdout
