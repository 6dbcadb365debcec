"""`unitsphere compress`: make a model smaller, step by step or rung by rung, and measure what that costs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere import paths
from unitsphere.cli import hydra_app
from unitsphere.cli.chain import SHARED, last_of_each_key
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

if TYPE_CHECKING:
    from unitsphere.compression.step import Context, Step
    from unitsphere.model import Model
    from unitsphere.types import Result


OF_RANKS = ("UNITSPHERE_RUN_OF_RANKS", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
RECOVERY = "recovery."  # an override that begins so goes to the runs that steps ask for, without it


@dataclass(frozen=True)
class Chain:
    """The steps of a rung, in order: name -> configuration node, and what is added to the overrides of their training.

    Chains that begin alike share what they begin with.
    """

    nodes: Mapping[str, Any]
    recovery: Sequence[str] = ()

    @cached_property
    def steps(self) -> dict[str, "Step"]:
        """Built."""
        from unitsphere.build import build

        return {name: build(node) for name, node in self.nodes.items()}

    def key(self, count: int) -> str:
        """Equal for chains whose first `count` steps are equal."""
        nodes = [OmegaConf.to_container(node) for node in self.nodes.values()]
        return json.dumps([nodes[:count], list(self.recovery)])


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    own, others = divided(arguments)
    hydra_app.run("compress", partial(job, recovery=own), others)


def check(config: DictConfig) -> None:
    """Look at the steps that a run of train.yaml is to end with, before it has trained for hours.

    Raises:
        UsageError: They cannot follow each other.
    """
    if config.get("compression"):
        from unitsphere.compression.step import check_chain

        check_chain(Chain(config.compression).steps)


def after_training(run: Run) -> None:
    """`unitsphere compress` of a run that has steps of compression, scored as the run was, in its folder.

    Raises:
        UsageError: It failed; what it said stands above.
    """
    steps = list(map(str, run.config.get("compression") or ()))
    if not steps:
        return
    typed: Any = OmegaConf.to_container(OmegaConf.load(run.folder / "overrides.yaml"))
    own = [o for o in typed if o.lstrip("+~").startswith(("compression.", "calibration@", "eval=", "eval.", "index@"))]
    fixed = [f"model={run.folder}", f"compression=[{','.join(steps)}]", f"outputs={run.folder}"]
    settings = [f"seed={run.config.seed}", f"threads={run.config.trainer.threads}"]
    line = [sys.executable, "-m", "unitsphere.cli", "compress", *fixed, *own, *settings]
    alone = {k: v for k, v in os.environ.items() if k not in OF_RANKS}
    if subprocess.run(line, env=alone).returncode:
        raise UsageError(
            f"{run.folder} is trained; compressing it failed, and can be tried again: {' '.join(line[3:])}"
        )


def divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those for recovery, without the prefix, and the others."""
    own = [o for o in overrides if o.lstrip("+~").startswith(RECOVERY)]
    return [o.replace(RECOVERY, "", 1) for o in own], [o for o in overrides if o not in own]


def job(config: DictConfig, recovery: Sequence[str] = ()) -> None:
    """Make every rung, score it, measure them all, print and save."""
    from hydra.core.hydra_config import HydraConfig

    from unitsphere.report import ladder
    from unitsphere.training.run import quiet
    from unitsphere.training.trainer import cpu_threads

    quiet()
    typed = list(HydraConfig.get().overrides.task)
    config = hydra_app.resolved(config)
    if config.threads == "auto":
        config.threads = cpu_threads()
    if config.target is not None:
        ladder.conditions(config.target)  # before hours of work
    rungs = chains(config, recovery)
    hydra_app.make_absolute(config)
    if Path(config.model).expanduser().exists():
        config.model = str(Path(config.model).expanduser().resolve())
    of_run = Run.open(config.model) if (Path(config.model) / "run.json").exists() else None
    if config.get("data") is None and of_run is not None:
        config.data = of_run.config.data
    work = Work(config, shared(typed, of_run))
    run = Run.create(Path(config.outputs) / "compressed" / Path(config.model).name, stamped("compress"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    write(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([*typed, *map(prefixed, recovery)])))
    run.note(**provenance(), status="running", model=config.model, threads=config.threads, choices={})
    with run.lock():
        try:
            work.climb(run, rungs)
        except BaseException as error:
            run.note(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        run.note(status="done")
    report(run, config.target)


def report(run: Run, target: str | None) -> None:
    """Write and print the ladder, and the rung that meets the target."""
    from unitsphere.report import ladder
    from unitsphere.report.records import read
    from unitsphere.report.table import show

    notes = []
    records = [read(run.folder)]
    if target is not None:
        chosen = ladder.smallest(ladder.lines(records), run.info["primaries"][0], target)
        notes = [f"smallest with {target}: " + (f"{chosen} (models/{chosen})" if chosen else "none of these rungs")]
        run.note(target=target, chosen=chosen)
    ladder.save(records, run.folder / "ladder", run.folder / "pictures" / "ladder.png", notes)
    show(ladder.terminal(records))
    for line in (*notes, str(run.folder)):
        show(line)


def prefixed(override: str) -> str:
    """As it was typed."""
    bare = override.lstrip("+~")
    return override[: len(override) - len(bare)] + RECOVERY + bare


def chains(config: DictConfig, recovery: Sequence[str]) -> dict[str, Chain]:
    """Rung -> its chain: those of the ladder, or compression=[a,b] as the rungs a and a+b.

    Raises:
        UsageError: Neither or both are given, or steps that cannot follow each other.
    """
    from unitsphere.compression.step import check_chain

    if bool(config.compression) == bool(config.get("ladder")):
        raise UsageError("give one of compression=… (steps, in order) and ladder=… (many such chains)")
    if config.get("ladder"):
        found = {rung: compose(rung, overrides, recovery) for rung, overrides in config.ladder.items()}
        if bad := [rung for rung in found if "/" in rung or rung == "original"]:
            raise UsageError(f"ladder: {bad[0]!r} is no name for a rung: it is a folder's name, and not `original`")
    else:
        nodes = list(config.compression.items())
        starts = [dict(nodes[: n + 1]) for n in range(len(nodes))]
        found = {"+".join(map(str, start)): Chain(start, recovery) for start in starts}
    for chain in found.values():
        check_chain(chain.steps)
    return found


def compose(rung: str, overrides: Sequence[str], recovery: Sequence[str]) -> Chain:
    """The chain of a rung, from what would be typed.

    Raises:
        UsageError: It names the rung.
    """
    import hydra
    from hydra.errors import HydraException

    own, others = divided(overrides)
    try:
        composed = hydra.compose("compress", ["model=none", *others])
    except HydraException as error:
        raise UsageError(f"ladder: {rung}: {' '.join(str(error).split())}") from error
    if not composed.compression:
        raise UsageError(f"ladder: {rung}: {list(overrides)} names no compression=…")
    nodes = {str(name): hydra_app.resolved(node) for name, node in composed.compression.items()}
    return Chain(nodes, [*recovery, *own])


def shared(typed: Sequence[str], of_run: Run | None) -> list[str]:
    """Overrides that say what data a recovery trains on: those typed here, else those of the run."""
    here = [o for o in typed if o.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] in SHARED]
    if any(o.startswith("data=") for o in here) or of_run is None:
        return here
    saved: Any = OmegaConf.to_container(OmegaConf.load(of_run.folder / "overrides.yaml"))
    keys = ("data", "preparation", "sampler")
    theirs = [o for o in saved if o.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] in keys]
    return [*theirs, *here]


class Work:
    """What every rung needs: the data, the evaluators, the model to begin with.

    Args:
        config: Resolved.
        data: Overrides with which a recovery finds its data.
    """

    def __init__(self, config: DictConfig, data: Sequence[str]):
        import torch

        from unitsphere import artefact
        from unitsphere.build import build
        from unitsphere.evaluation.score import scores_nothing
        from unitsphere.training.run import build_evaluators

        torch.set_num_threads(config.threads)
        self.config, self.overrides = config, data
        self.data = build(config.data) if config.get("data") is not None else None
        splits = self.data.splits if self.data is not None else None
        self.test = build_evaluators(config.eval, "test", splits.test if splits else None)
        if scores_nothing(self.test):
            raise UsageError("eval is empty: choose what to score each rung on, e.g. eval=retrieval or eval=sts")
        self.dev = cache(lambda: build_evaluators(config.eval, "dev", splits.dev if splits else None))
        self.pairs = pairs(splits.train, config.sample, config.seed) if splits else []
        if config.measure and not self.pairs:
            raise UsageError("speed is measured on training texts: name some with data=…, or add measure=false")
        artefact.load(config.model)  # so that one which cannot be loaded leaves no folder
        self.made: dict[str, Path] = {}  # see `Chain.key`
        self.max_length = config.max_length or (self.data.max_length if self.data is not None else None)

    def climb(self, run: Run, rungs: Mapping[str, Chain]) -> None:
        """Make, save and score the original and every rung, then measure all of them."""
        from unitsphere import artefact
        from unitsphere.report.ladder import BASELINE, Rung, noted
        from unitsphere.report.table import show

        models = run.folder / "models"
        models.mkdir()
        found: dict[str, Rung] = {}
        for name, chain in {BASELINE: Chain({}), **rungs}.items():
            place = models / name
            artefact.save(self.carried_out(run, name, chain), place)
            self.made[chain.key(len(chain.nodes))] = place
            model = artefact.load(place)  # what a user gets, and nothing that only this process has
            result = self.scored(model)
            if not found:
                run.note(primaries=primaries(result), protocol=result.protocol)
            run.add_metrics({f"{name}/{k}": v for k, v in result.metrics.items()})
            run.add_items(name, result.items)
            size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file() and f.suffix in WEIGHTS)
            found[name] = Rung(name, " ".join(chain.steps) or "-", size, model.vector_bytes)
            run.note(rungs=noted(found))
            show(f"{name}: {result.primary} {100 * result.metrics[result.primary]:.2f}, {size / 1e6:.1f} MB")
        if self.config.measure:
            run.note(rungs=noted(self.measured(models, found)))

    def carried_out(self, run: Run, rung: str, chain: Chain) -> "Model":
        """The original after these steps, each in a folder of its own."""
        from unitsphere import artefact
        from unitsphere.compression.step import Context

        done = next((n for n in range(len(chain.nodes), 0, -1) if chain.key(n) in self.made), 0)
        model = artefact.load(self.made[chain.key(done)] if done else self.config.model)
        for name, step in list(chain.steps.items())[done:]:
            folder = run.folder / "runs" / rung / name
            folder.mkdir(parents=True)
            context = Context(self.pairs, self.max_length, folder, self.config.seed, self.dev_score)
            model = step.apply(model, context)
            if step.recovery:
                model = self.recovered(model, [*step.recovery, *chain.recovery], context)
        return model

    def recovered(self, model: "Model", overrides: Sequence[str], context: "Context") -> "Model":
        """The model after the training that a step asks for: a run of its own, from the step's result."""
        from unitsphere import artefact

        start = context.folder / "start"
        artefact.save(model, start)
        original = str(paths.model(self.config.model) or self.config.model)
        own = [o.replace("{original}", original) for o in overrides]
        fixed = [f"init={start}", f"seed={self.config.seed}", f"trainer.threads={self.config.threads}"]
        typed = [*self.overrides, *own, *fixed, f"outputs={context.folder}", "name=recovery"]
        ended = subprocess.run([sys.executable, "-m", "unitsphere.cli", "train", *last_of_each_key(typed)])
        if ended.returncode:
            raise UsageError(f"the recovery in {context.folder} failed; what it said stands above")
        trained = max((context.folder / "recovery").iterdir())
        shutil.rmtree(start)
        return artefact.load(trained)

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


WEIGHTS = {".safetensors", ".onnx", ".data", ".npz", ".npy", ".faiss"}


def primaries(result: "Result") -> list[str]:
    """The primary metric, then the first of every other task."""
    first = {result.primary.partition("/")[0]: result.primary}
    for metric in result.metrics:
        first.setdefault(metric.partition("/")[0], metric)
    return list(first.values())


def pairs(rows: Any, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` training rows as (query, document); of data without pairs, every text twice."""
    import numpy as np

    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    others = rows.anchor if rows.positive is None else rows.positive
    return [(rows.anchor[i], others[i]) for i in chosen]
