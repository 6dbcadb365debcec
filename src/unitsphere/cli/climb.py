"""Rungs made, saved, scored and measured."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere import paths
from unitsphere.cli import hydra_app
from unitsphere.cli.chain import SHARED, group, last_of_each_key
from unitsphere.cli.rungs import Chain
from unitsphere.errors import UsageError
from unitsphere.runs import Run, write

if TYPE_CHECKING:
    from unitsphere.model import Model
    from unitsphere.types import Result

WEIGHTS = {".safetensors", ".onnx", ".data", ".npz", ".npy", ".faiss"}


class Work:
    """What every rung needs: the data, the evaluators, the model to begin with.

    Args:
        config: Resolved.
        typed: The overrides that it was composed from; a recovery reads what they name, else, where the model is a
            run's, what that run read.
    """

    def __init__(self, config: DictConfig, typed: Sequence[str]):
        import torch

        from unitsphere import artefact
        from unitsphere.build import build, build_evaluators
        from unitsphere.evaluation.score import scores_nothing

        torch.set_num_threads(config.threads)
        original = artefact.load(config.model)  # first, so that one which cannot be loaded leaves no folder
        self.config, self.typed = config, [override for override in typed if group(override) in SHARED]
        named = any(override.startswith("data=") for override in self.typed)
        self.of_run = None if named else run_of(config.model)
        self.data = build(config.data) if config.get("data") is not None else None
        splits = self.data.splits if self.data is not None else None
        self.inputs = {"model": original.identity(), "data": splits.provenance() if splits else None}
        self.test = build_evaluators(config.eval, "test", splits.test if splits else None)
        if scores_nothing(self.test):
            raise UsageError("eval is empty: choose what to score each rung on, e.g. eval=retrieval or eval=sts")
        self.dev = cache(lambda: build_evaluators(config.eval, "dev", splits.dev if splits else None))
        self.pairs = pairs(splits.train, config.sample, config.seed) if splits else []
        if config.measure and not self.pairs:
            raise UsageError("speed is measured on training texts: name some with data=…, or add measure=false")
        self.made: dict[str, Path] = {}  # see `Chain.key`
        self.max_length = config.max_length or (self.data.max_length if self.data is not None else None)

    def climb(self, run: Run, rungs: Mapping[str, Chain]) -> None:
        """Make, save and score the original and every rung, then measure all of them. What the folder of a run that was
        cut has already stays as it is; a rung of a ladder that cannot be scored is left out, and why is noted.

        What needs no training is made before anything is scored, and what needs some is rehearsed with trainings of no
        step: what does not fit this model or its data says so within minutes.
        """
        from unitsphere import artefact
        from unitsphere.report.ladder import BASELINE, Rung, noted
        from unitsphere.report.table import show

        for name, chain in rungs.items():
            if self.data is None and (teaching := [step for step, made in chain.steps.items() if made.recovery]):
                raise UsageError(f"{name}: the training of {teaching[0]} reads texts: name some with data=…")
        run.note(failed={})
        models = run.folder / "models"
        models.mkdir(exist_ok=True)
        chains = {BASELINE: Chain({}), **rungs}
        for name, chain in chains.items():
            trains = any(step.recovery for step in chain.steps.values())
            try:
                if trains and not (models / name).exists():
                    with TemporaryDirectory() as place:
                        self.carried_out(Path(place), chain, ["trainer.max_steps=0"])
                else:
                    self.make(run, name, chain)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
        found = {rung["name"]: Rung(**rung) for rung in run.info.get("rungs", ())}
        for name in [name for name in chains if name not in found]:
            self.make(run, name, chains[name])
            model = artefact.load(models / name)  # what a user gets, and nothing that only this process has
            try:
                result = self.scored(model)
            except UsageError as error:
                if name == BASELINE or not self.config.get("ladder"):
                    raise UsageError(f"{name}: {error}") from error
                run.note(failed=run.info.get("failed", {}) | {name: str(error)})
                show(f"{name} is left out: {error}")
                continue
            if name == BASELINE:
                run.note(primaries=primaries(result), protocol=result.protocol)
            run.add_metrics({f"{name}/{k}": v for k, v in result.metrics.items()})
            run.add_items(name, result.items)
            size = sum(f.stat().st_size for f in (models / name).rglob("*") if f.is_file() and f.suffix in WEIGHTS)
            found[name] = Rung(name, " ".join(chains[name].steps) or "-", size, model.vector_bytes)
            run.note(rungs=noted(found))
            show(f"{name}: {result.primary} {100 * result.metrics[result.primary]:.2f}, {size / 1e6:.1f} MB")
        if self.config.measure:
            run.note(rungs=noted(self.measured(models, found)))

    def make(self, run: Run, name: str, chain: Chain) -> None:
        """Save a rung's model, unless it is there."""
        from unitsphere import artefact

        place = run.folder / "models" / name
        if not place.exists():
            work = run.folder / "runs" / name
            artefact.save(self.carried_out(work, chain), place)
            for step in chain.steps:  # graphs of several forms; a training stays
                if recovery(work / step) is None:
                    shutil.rmtree(work / step, ignore_errors=True)
        self.made[chain.key(len(chain.nodes))] = place

    def carried_out(self, place: Path, chain: Chain, more: Sequence[str] = ()) -> "Model":
        """The original after these steps, each in a folder of its own in `place`; `more` goes to their trainings."""
        from unitsphere import artefact
        from unitsphere.compression.step import Context

        done = next((n for n in range(len(chain.nodes), 0, -1) if chain.key(n) in self.made), 0)
        model = artefact.load(self.made[chain.key(done)] if done else self.config.model)
        for name, step in list(chain.steps.items())[done:]:
            folder = place / name
            if recovery(folder) is not None:
                model = trained(folder)
                continue
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            model = step.apply(model, Context(self.pairs, self.max_length, folder, self.config.seed, self.scorer))
            if step.recovery:
                model = self.recovered(model, [*step.recovery, *chain.recovery, *more], folder)
        return model

    def recovered(self, model: "Model", overrides: Sequence[str], folder: Path) -> "Model":
        """The model after the training that a step asks for: a run of its own, from the step's result."""
        from unitsphere import artefact

        start = folder / "start"
        artefact.save(model, start)
        original = str(paths.model(self.config.model) or self.config.model)
        own = [hydra_app.filled(override, {"original": original}) for override in overrides]
        fixed = [hydra_app.quoted(f"{key}={place}") for key, place in (("init", start), ("outputs", folder))]
        fixed += [f"seed={self.config.seed}", f"trainer.threads={self.config.threads}", "name=recovery"]
        read = as_read(self.of_run, folder / "conf") if self.of_run is not None else []
        return trained(folder, last_of_each_key([*read, *self.typed, *own, *fixed]))

    def scorer(self) -> "Callable[[Model], float] | None":
        """What scores a model on dev; None where nothing does."""
        from unitsphere.evaluation.score import scores_nothing

        return None if scores_nothing(self.dev()) else self.dev_score

    def dev_score(self, model: "Model") -> float:
        """The primary metric on dev."""
        from unitsphere.evaluation.score import score

        result = score(self.dev(), model.embed)
        return result.metrics[result.primary]

    def scored(self, model: "Model") -> "Result":
        """On test."""
        from unitsphere.evaluation.score import score

        return score(self.test, model.embed)

    def measured(self, models: Path, found: Mapping[str, Any]) -> dict[str, Any]:
        """The rungs with speed and memory."""
        from unitsphere import artefact
        from unitsphere.bench import memory, speed
        from unitsphere.report.ladder import BASELINE
        from unitsphere.report.table import show

        texts = list(dict.fromkeys(t for pair in self.pairs for t in pair))[: self.config.texts]
        loaders: dict[str, Callable[[], Model]] = {name: partial(artefact.load, models / name) for name in found}
        options = {"size": self.config.batch, "rounds": self.config.rounds, "max_length": self.max_length}
        speeds = speed.compare(loaders, BASELINE, texts, tell=show, **options)
        peak = {name: memory.peak(models / name, texts, self.config.batch, self.max_length) for name in found}
        return {
            name: replace(
                rung,
                memory=peak[name],
                throughput=speeds[name].throughput,
                speedup=speeds[name].times,
                speedup_one=speeds[name].times_one,
                latency_p50=speeds[name].p50,
                latency_p99=speeds[name].p99,
            )
            for name, rung in found.items()
        }


def recovery(folder: Path) -> Run | None:
    """The run of the training that a step asked for, in the step's folder; None where it has not begun."""
    return next((Run(file.parent) for file in folder.glob("recovery/*/run.json")), None)


def trained(folder: Path, arguments: Sequence[str] = ()) -> "Model":
    """The model of a step's recovery, which is begun with these arguments of `unitsphere train`, or goes on.

    Raises:
        UsageError: It failed; what it said stands above.
    """
    from unitsphere import artefact

    run = recovery(folder)
    if run is None or run.info["status"] != "done":
        line = arguments if run is None else [hydra_app.quoted(f"resume={run.folder}")]
        if subprocess.run([sys.executable, "-m", "unitsphere", "train", *line]).returncode:
            raise UsageError(f"the recovery in {folder} failed; what it said stands above")
        run = recovery(folder)
    assert run is not None
    shutil.rmtree(folder / "start", ignore_errors=True)
    return artefact.load(run.folder)


def run_of(model: str) -> Run | None:
    """The run whose model it is, if it is a run's folder."""
    return Run.open(model) if (Path(model) / "run.json").exists() else None


def as_read(run: Run, folder: Path) -> list[str]:
    """Arguments with which another run reads its training rows as this one did: options of its own, in `folder`."""
    groups = [name for name in ("data", "preparation", "sampler") if run.config.get(name)]
    for name in groups:
        (folder / name).mkdir(parents=True)
        write(folder / name / "of_run.yaml", OmegaConf.to_yaml(run.config[name]))
    return [f"--config-dir={folder}", *(f"{name}=of_run" for name in groups)]


def primaries(result: "Result") -> list[str]:
    """The primary metric, then the first of every other task."""
    first = {result.primary.partition("/")[0]: result.primary}
    for metric in result.metrics:
        first.setdefault(metric.partition("/")[0], metric)
    return list(first.values())


def pairs(rows: Any, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` training rows as (query, document); of data without pairs, and of scored ones, every text twice."""
    import numpy as np

    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    if rows.positive is not None and rows.score is not None:  # some of these pairs are alike, and others are not
        return [(text, text) for i in chosen for text in (rows.anchor[i], rows.positive[i])]
    others = rows.anchor if rows.positive is None else rows.positive
    return [(rows.anchor[i], others[i]) for i in chosen]
