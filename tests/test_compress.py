"""The verb: chains and ladders are carried out, scored as they will be executed, measured, and chosen from."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from conftest import composed
from unitsphere import artefact
from unitsphere.bench import memory, speed
from unitsphere.cli.chain import group
from unitsphere.cli.climb import Work, as_read, primaries
from unitsphere.cli.compress import scored_on
from unitsphere.cli.rungs import Chain
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.report import ladder
from unitsphere.report.records import read
from unitsphere.runs import Run, write
from unitsphere.types import Result


def saved(folder):
    nodes = {"_target_": "unitsphere.pooling.mean.MeanPooling"}, {"_target_": "unitsphere.embedder.Embedder"}
    artefact.save(artefact.assemble(tiny(dim=64), *nodes).eval(), folder)
    return folder


def unitsphere(*arguments, cwd):
    line = [sys.executable, "-m", "unitsphere", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True)


def compress(*arguments, cwd):
    return unitsphere("compress", *arguments, cwd=cwd)


@pytest.mark.slow
def test_a_chain_with_a_recovery_is_carried_out_and_every_step_is_scored(tmp_path, pairs):
    saved(tmp_path / "mine")
    data = ["data=pairs", f"data.path={pairs}", "data.batch_size=8"]
    recovery = ["recovery.trainer.max_steps=2"]
    small = ["sample=40", "texts=16", "rounds=1", "threads=1", "compression.int8_static.texts=8"]
    done = compress("model=mine", "compression=[qat,int8_static]", *recovery, *data, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "compressed" / "mine").iterdir()
    run = Run.open(folder)
    assert run.info["status"] == "done"
    assert [r["name"] for r in run.info["rungs"]] == ["original", "qat", "qat+int8_static"]
    for name in ("original", "qat", "qat+int8_static"):
        assert f"{name}/{run.info['primaries'][0]}" in run.metrics
        assert (folder / "scores" / name).is_dir()
    steps = Run.open(next((folder / "runs" / "qat" / "qat" / "recovery").iterdir())).info["steps"]
    assert steps == 2
    models = [artefact.load(folder / "models" / name) for name in ("original", "qat", "qat+int8_static")]
    vectors = [model.encode(["red fish", "old house"]) for model in models]
    assert np.abs(vectors[0] - vectors[1]).max() > 0 and np.abs(vectors[1] - vectors[2]).max() > 0
    sizes = [r["size"] for r in run.info["rungs"]]
    assert sizes[2] < 0.8 * sizes[0]
    for rung in run.info["rungs"]:
        assert rung["throughput"] > 0 and rung["memory"] > 0 and rung["latency_p99"] >= rung["latency_p50"]
    for file in ("ladder.md", "ladder.tex", "ladder.csv", "ladder.html", "pictures/ladder.png"):
        assert (folder / file).stat().st_size > 100


def ladder_of(tmp_path, **rungs):
    """Arguments of a ladder of one's own, scored and not measured."""
    write_to = tmp_path / "conf" / "ladder" / "own.yaml"
    write_to.parent.mkdir(parents=True, exist_ok=True)
    write_to.write_text(json.dumps(rungs))
    settings = ["ladder=own", "sample=40", "measure=false", "threads=1", "data=pairs", "data.batch_size=8"]
    return [f"--config-dir={tmp_path / 'conf'}", "model=mine", *settings]


@pytest.mark.slow
def test_one_that_was_killed_goes_on_where_it_was(tmp_path, pairs):
    saved(tmp_path / "mine")
    taught = ["compression=[prune_layers,recover]", "compression.prune_layers.count=1"]
    both = ["compression=[prune_layers,recover,qat]", "compression.prune_layers.count=1"]
    given = ladder_of(tmp_path, taught=taught, both=both, small=["compression=int8_dynamic"])
    given += [f"data.path={pairs.name}", "recovery.trainer.max_steps=40", "recovery.callbacks.selection.save_every=2"]
    line = [sys.executable, "-m", "unitsphere", "compress", *given, "outputs=cut"]
    process = subprocess.Popen(line, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("cut/compressed/mine/*/runs/both/qat/**/last.ckpt"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = found[0].relative_to(tmp_path / "cut" / "compressed" / "mine").parts[0]
    cut = Run.open(tmp_path / "cut" / "compressed" / "mine" / folder)
    assert cut.info["status"] == "killed" and "original/pairs/mrr@10" in cut.metrics
    kept = {file: file.stat().st_mtime_ns for file in cut.folder.glob("models/*/*") if file.is_file()}
    assert {file.parent.name for file in kept} == {"original", "taught", "small"}

    others = [typed for typed in given if not typed.startswith("recovery.")]
    again = compress(*others, "outputs=cut", "~ladder", "compression=onnx", cwd=tmp_path)
    assert again.returncode == 0 and f"compress resume={cut.folder}" in again.stdout
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = pairs.read_text()
    pairs.write_text(text.replace("number", "figure"))
    refused = compress(f"resume={cut.folder}", cwd=elsewhere)
    assert refused.returncode == 2 and "the data is not what it was" in refused.stderr
    pairs.write_text(text)
    done = compress(f"resume={cut.folder}", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == time_before for file, time_before in kept.items())
    assert [f.parent.name for f in sorted(cut.folder.glob("runs/*/*/recovery"))] == ["qat", "recover"]
    (recovery,) = cut.folder.glob("runs/both/qat/recovery/*")
    assert Run(recovery).info["steps"] == 40 and 0 < Run(recovery).info["train_steps"] < 40
    whole = compress(*given, "outputs=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    (other,) = (tmp_path / "whole" / "compressed" / "mine").iterdir()
    assert cut.info["status"] == "done" and cut.metrics == Run(other).metrics
    assert [rung["name"] for rung in cut.info["rungs"]] == ["original", "taught", "both", "small"]
    for arguments, what in (
        ([f"resume={cut.folder}"], "it is done"),
        (["seed=2", f"resume={cut.folder}"], "leave out seed=2"),
        ([f"resume={recovery}"], "no folder of `unitsphere compress` that can go on"),
        (["resume=nowhere"], "nowhere is not a run folder"),
    ):
        refused = compress(*arguments, cwd=tmp_path)
        assert refused.returncode == 2 and what in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "wide",
    [
        ["compression=truncate", "compression.truncate.dim=9999"],
        ["compression=[prune_ffn,recover,truncate]", "compression.truncate.dim=9999"],
        ["compression=matryoshka", "recovery.loss.dims=[9999]"],
    ],
)
def test_a_step_that_does_not_fit_is_told_of_before_anything_is_scored_or_trained(tmp_path, pairs, wide):
    saved(tmp_path / "mine")
    given = ladder_of(tmp_path, taught=["compression=[prune_ffn,recover]"], wide=wide)
    done = compress(*given, f"data.path={pairs}", cwd=tmp_path)
    assert done.returncode == 2 and "wide: " in done.stderr and "9999" in done.stderr, done.stderr
    (folder,) = (tmp_path / "outputs" / "compressed" / "mine").iterdir()
    assert Run.open(folder).metrics == {} and not (folder / "runs" / "taught").exists()


@pytest.mark.slow
def test_a_training_run_ends_with_its_compression(tmp_path, pairs):
    line = [
        sys.executable,
        "-m",
        "unitsphere",
        "train",
        "loss=infonce",
        "encoder=tiny",
        "data=pairs",
        f"data.path={pairs}",
    ]
    small = ["data.batch_size=8", "trainer.max_steps=2", "trainer.threads=1", "eval=retrieval", "select=last"]
    narrow = ["compression=[truncate,pq]", "compression.truncate.dim=8", "compression.pq.bytes=5"]
    for steps, why in ((["compression=[int8_dynamic,qat]"], "cannot come after"), (narrow, "1, 2, 4, 8 would fit")):
        wrong = subprocess.run([*line, *small, *steps], cwd=tmp_path, capture_output=True, text=True)
        assert wrong.returncode == 2 and why in wrong.stderr
    assert not [*tmp_path.rglob("model.safetensors")]  # it was said before anything was trained
    done = subprocess.run([*line, *small, "compression=[int8_dynamic]"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (r for r in (tmp_path / "outputs" / "infonce-mean").iterdir() if Run.open(r).info["status"] == "done")
    (compressed,) = (run / "compressed" / run.name).iterdir()
    assert Run.open(compressed).info["rungs"][1]["name"] == "int8_dynamic"
    assert artefact.load(compressed / "models" / "int8_dynamic").encode(["red"]).shape == (1, 32)
    assert not (compressed / "runs" / "int8_dynamic").exists() or not [*(compressed / "runs").rglob("*.onnx")]
    shown = unitsphere("table", "outputs", cwd=tmp_path)  # the run, and not the ladder in its folder
    assert shown.returncode == 0 and "pairs/mrr@10" in shown.stdout, shown.stderr
    assert "int8_dynamic" in unitsphere("table", str(run / "compressed"), cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_compression_that_failed_is_tried_again_without_another_training(tmp_path, pairs):
    (tmp_path / "conf" / "compression").mkdir(parents=True)
    narrow = "narrow:\n  _target_: unitsphere.compression.vectors.pca.PCA\n  dim: 7\n  texts: 5\n"
    (tmp_path / "conf" / "compression" / "narrow.yaml").write_text(narrow)  # an option of one's own
    line = ["-cd", "conf", "loss=infonce", "encoder=tiny", "data=pairs", f"data.path={pairs}", "data.batch_size=8"]
    line += ["trainer.max_steps=2", "trainer.threads=1", "eval=retrieval", "select=last", "compression=narrow"]
    failed = unitsphere("train", "-m", *line, "seed=1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert failed.returncode == 1 and "0 of 1 cells done, 1 trained" in failed.stdout
    (run,) = (Run.open(file.parent) for file in (tmp_path / "sweep").glob("*/run.json"))
    assert "texts=5); 7 or more would fit" in failed.stderr and run.info["error"] == "UsageError: compressing it failed"
    (ladder_folder,) = (run.folder / "compressed" / run.folder.name).iterdir()
    rungs = (ladder_folder / "rungs.yaml").read_text()
    (ladder_folder / "rungs.yaml").write_text(rungs.replace("texts: 5", "texts: 50"))
    trained = (run.folder / "model" / "model.safetensors").stat().st_mtime_ns
    again = unitsphere("train", "resume=sweep", cwd=tmp_path)
    assert again.returncode == 0 and "1 of 1 cells done" in again.stdout, again.stderr
    assert run.info["status"] == "done" and trained == (run.folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert artefact.load(ladder_folder / "models" / "narrow").encode(["red"]).shape == (1, 7)


def test_a_training_has_texts_to_read(tmp_path):
    chain = Chain({"recover": OmegaConf.load("conf/compression/recover.yaml").recover})
    work = object.__new__(Work)
    work.data = None
    with pytest.raises(UsageError, match="taught: the training of recover reads texts: name some with data="):
        work.climb(Run.create(tmp_path, "run"), {"taught": chain})


@pytest.mark.slow
def test_a_rung_that_cannot_be_scored_is_left_out_and_named(tmp_path, pairs):
    """Half precision ends at 65,504, and this model's states do not."""
    model = artefact.load(saved(tmp_path / "mine"))
    model.encoder.model.get_input_embeddings().weight.data *= 1e4
    model.encoder.model.embeddings.LayerNorm = torch.nn.Identity()
    for layer in model.encoder.model.encoder.layer:
        layer.attention.output.LayerNorm.weight.data *= 1e5
    artefact.save(model, tmp_path / "large")
    given = [
        a if a != "model=mine" else "model=large"
        for a in ladder_of(tmp_path, fp16=["compression=fp16"], bf16=["compression=bf16"])
    ]
    done = compress(*given, f"data.path={pairs}", cwd=tmp_path)
    assert done.returncode == 0 and "fp16 is left out: the model's vectors are not finite" in done.stdout, done.stderr
    (folder,) = (tmp_path / "outputs" / "compressed" / "large").iterdir()
    assert [rung["name"] for rung in Run.open(folder).info["rungs"]] == ["original", "bf16"]
    assert "left out: fp16: " in (folder / "ladder.md").read_text()
    alone = [a for a in given if a != "ladder=own" and "config-dir" not in a]
    done = compress(*alone, f"data.path={pairs}", "compression=fp16", cwd=tmp_path)  # and nothing else
    assert done.returncode == 2 and "fp16: the model's vectors are not finite" in done.stderr


@pytest.mark.slow
def test_bad_usage_is_said_before_anything_is_made(tmp_path, pairs):
    saved(tmp_path / "mine")
    data = ["data=pairs", f"data.path={pairs}"]
    for arguments, what in (
        (["model=mine"], "give one of compression=…"),
        (
            ["model=mine", "compression=[int8_dynamic,qat]", *data],
            "qat changes the torch weights and cannot come after",
        ),
        (["model=mine", "compression=int8", *data], "Did you mean"),
        (["model=mine", "compression=onnx", "target=quality>98%", *data], "quality>98%"),
        (["model=nowhere", "compression=onnx"], "no such folder"),
        (
            ["model=mine", "compression=onnx", *data, "measure=false", "target='size<=1MB latency_p99<=9ms'"],
            "target: latency_p99 would have to be measured",
        ),
        (["model=mine", "compression=onnx"], "has no test queries"),
        (["model=mine", "compression=[static,int8_static]", *data], "static leaves no network, and int8_static turns"),
        (
            ["model=mine", "compression=prune_heads", "recovery.trainer.max_steps=9", *data],
            "none of these steps trains",
        ),
        (ladder_of(tmp_path, other=["compression=prune_layers", "seed=2"]), "ladder: other: seed=2 is for all rungs"),
        (["model=mine", "compression=onnx", "sample=0", *data], "speed is measured on training texts"),
    ):
        done = compress(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and what in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "outputs").exists()


def test_a_target_is_read_or_refused():
    assert ladder.conditions("quality>=98% latency_p99<=10ms size<=30MB") == [
        ("quality", ">=", 98.0),
        ("latency_p99", "<=", 10.0),
        ("size", "<=", 30.0),
    ]
    with pytest.raises(UsageError, match=r"quality is in %, such as quality>=98%"):
        ladder.conditions("quality>=0.98")
    for wrong in ("quality", "quality=98", "qualty>=98", "latency_p99<=10s", "size<=MB", "quality>=98.5.5"):
        with pytest.raises(UsageError, match="cannot be read"):
            ladder.conditions(wrong)


def rungs() -> pd.DataFrame:
    rows = [("original", 100e6, None, 20.0), ("half", 50e6, 0.999, 15.0), ("small", 10e6, 0.97, 3.0)]
    table = pd.DataFrame(rows, columns=["name", "size", "sts/avg kept", "latency_p99"])
    return table.assign(vector=100.0, memory=1.0, throughput=1.0, speedup=1.0, latency_p50=1.0)


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        ("quality>=98%", "half"),
        ("quality>=96%", "small"),
        ("quality>=98% latency_p99<=10ms", None),
        ("quality>=100", "original"),
    ],
)
def test_the_smallest_that_meets_the_target_is_chosen(target, chosen):
    assert ladder.smallest(rungs(), "sts/avg", target) == chosen


def test_the_front_is_that_of_all_comparisons():
    points = [tuple(p) for p in np.random.default_rng(0).integers(0, 12, size=(40, 2)).tolist()]
    beaten = {i for i, (x, y) in enumerate(points) for a, b in points if (a <= x and b > y) or (a < x and b >= y)}
    front = ladder.front(points)
    assert {points[i] for i in front} == {points[i] for i in range(40) if i not in beaten}
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def climbed(folder, seed=1, shrink=0.9, model="m", typed=(), noise=0.0):
    """A run of compress with 200 queries, and its queries' scores before and after."""
    run = Run.create(folder, f"compress{seed}")
    draw = np.random.default_rng(1)
    before = pd.DataFrame({"query": [str(i) for i in range(200)], "mrr@10": draw.uniform(0.5, 1, 200)})
    after = before.assign(**{"mrr@10": before["mrr@10"] * shrink + noise * draw.normal(size=200)})
    for stage, items in (("original", before), ("small", after)):
        run.add_items(stage, {"mine": items})
        run.add_metrics({f"{stage}/mine/mrr@10": float(items["mrr@10"].mean())})
    (run.folder / "config.yaml").write_text(f"model: {model}\nseed: {seed}\nladder: {{small: [compression=static]}}\n")
    (run.folder / "overrides.yaml").write_text(json.dumps(["ladder=mine", f"seed={seed}", *typed]))
    found = {name: ladder.Rung(name, "-", 10, 4) for name in ("original", "small")}
    run.note(status="done", choices={}, primaries=["mine/mrr@10"], rungs=ladder.noted(found), model=model)
    return read(run.folder), before["mrr@10"], after["mrr@10"]


def test_the_share_kept_is_of_the_runs_numbers_with_the_interval_of_their_ratio(tmp_path):
    record, before, after = climbed(tmp_path / "noisy", noise=0.2)
    small = ladder.lines([record]).set_index("name").loc["small"]
    assert small["mine/mrr@10 kept"] == pytest.approx(after.mean() / before.mean())
    draw = np.random.default_rng(2)
    drawn = [draw.integers(0, 200, 200) for _ in range(3000)]
    slow = np.quantile([after[some].mean() / before[some].mean() for some in drawn], [0.025, 0.975])
    assert small[["mine/mrr@10 low", "mine/mrr@10 high"]].tolist() == pytest.approx(slow, abs=0.005)
    record, *_ = climbed(tmp_path / "exact")
    small = ladder.lines([record]).set_index("name").loc["small"]
    assert small[["mine/mrr@10 low", "mine/mrr@10 high"]].tolist() == pytest.approx([0.9, 0.9])
    ladder.save([record], tmp_path / "ladder", tmp_path / "ladder.png")
    assert "| small |" in (tmp_path / "ladder.md").read_text()


def test_ladders_of_several_seeds_are_one_table_of_means_and_deviations(tmp_path):
    shares = (0.9, 0.8, 0.94)
    made = [climbed(tmp_path / "runs", seed, share) for seed, share in enumerate(shares, start=1)]
    out = unitsphere("table", "runs", "out=here/ladder", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    small = pd.read_csv(tmp_path / "here" / "ladder.csv").set_index("name").loc["small"]
    means = np.array([after.mean() for _, _, after in made])
    assert small["seeds"] == 3
    assert small["mine/mrr@10"] == pytest.approx(means.mean())
    assert small["mine/mrr@10 sd"] == pytest.approx(means.std(ddof=1))
    assert small["mine/mrr@10 kept"] == pytest.approx(np.mean(shares))
    assert (
        f"| small | 3 | {100 * means.mean():.2f} ± {100 * means.std(ddof=1):.2f} | 88.0 |"
        in (tmp_path / "here" / "ladder.md").read_text()
    )
    assert (tmp_path / "here" / "ladder.png").exists() and (tmp_path / "here" / "ladder.html").exists()


def test_a_ladder_that_was_cut_and_an_earlier_one_of_the_same_seed_are_no_seeds(tmp_path):
    climbed(tmp_path / "runs", 1, 0.5)
    (tmp_path / "runs" / "compress1").rename(tmp_path / "runs" / "compress0")
    climbed(tmp_path / "runs", 1, 0.9)
    climbed(tmp_path / "runs", 2, 0.9)
    Run(tmp_path / "runs" / "compress2").note(status="running")  # by no process
    early = Run.create(tmp_path / "runs", "compress3")  # one that failed before any rung was scored
    early.note(status="failed", choices={}, model="m")
    (early.folder / "rungs.yaml").write_text("{}")
    out = unitsphere("table", "runs", "out=ladder", cwd=tmp_path)
    assert out.returncode == 0 and "compress2: killed, so it is left out" in out.stderr
    small = pd.read_csv(tmp_path / "ladder.csv").set_index("name").loc["small"]
    assert small["seeds"] == 1 and small["mine/mrr@10 kept"] == pytest.approx(0.9)


def test_ladders_that_do_not_belong_together_are_refused(tmp_path):
    for name, other, what in (
        ("model", {"model": "another"}, "different models"),
        ("recovery", {"typed": ["recovery.trainer.max_steps=9"]}, "was made in different ways"),
    ):
        climbed(tmp_path / name)
        climbed(tmp_path / name, seed=2, **other)
        out = unitsphere("table", name, cwd=tmp_path)
        assert out.returncode == 2 and what in out.stderr, out.stderr
    out = unitsphere("table", "model/compress1", "rows=loss", cwd=tmp_path)
    assert out.returncode == 2 and "out=" in out.stderr


def test_primaries_are_the_first_metric_of_each_task():
    metrics = {"a/x": 0.1, "a/y": 0.2, "sts/one": 0.3, "sts/avg": 0.4}
    assert primaries(Result(metrics, "a/y", {}, {})) == ["a/y", "sts/one"]


def test_another_run_reads_what_a_run_read_however_that_was_chosen(tmp_path, pairs):
    chosen = [f"data.path={pairs}", "data.batch_size=8", "preparation=[unicode,length]", "sampler=no_duplicates"]
    run = Run.create(tmp_path, "run")
    config = composed("experiment=simcse_bert_unsup", "data=pairs", *chosen)
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    arguments = as_read(run, tmp_path / "conf")
    shown = unitsphere("train", *arguments, "data.max_length=9", "--cfg", "job", "--resolve", cwd=tmp_path)
    again = OmegaConf.create(shown.stdout)
    assert again.data == {**run.config.data, "max_length": 9}
    assert (again.preparation, again.sampler) == (run.config.preparation, run.config.sampler)


@pytest.mark.parametrize("override", ["data=a", "data.path=a", "+data@data.sources.web=pairs", "~data", "++data.x=1"])
def test_an_override_belongs_to_a_group(override):
    assert group(override) == "data"


def test_a_compressed_run_is_scored_as_it_was(tmp_path):
    run = Run.create(tmp_path, "run")
    write(run.folder / "config.yaml", OmegaConf.to_yaml(composed("eval=[sts,retrieval,geometry,truncation]")))
    assert [*scored_on(run)] == ["sts", "retrieval"]


@pytest.mark.slow
def test_speed_counts_texts_and_memory_is_of_a_process_of_its_own(tmp_path):
    folder = saved(tmp_path / "mine")
    load = {"a": lambda: artefact.load(folder), "b": lambda: artefact.load(folder)}
    texts = [f"text number {i}" for i in range(12)]
    told: list[str] = []
    found = speed.compare(load, "a", texts, size=4, rounds=2, alone=3, tell=told.append)
    assert list(found) == ["a", "b"] and len(told) == 2
    assert found["a"].times == found["a"].times_one == 1.0
    assert all(s.throughput > 0 and s.p99 >= s.p50 > 0 for s in found.values())
    assert 0 < memory.peak(folder, texts, 4, None) < 2000
    assert json.dumps(found["b"].times)
