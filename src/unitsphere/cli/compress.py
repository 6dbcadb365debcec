"""`unitsphere compress`: make a model smaller, step by step or rung by rung, and measure what that costs."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app
from unitsphere.cli.chain import group
from unitsphere.cli.climb import Work, run_of
from unitsphere.cli.rungs import Chain, chains, divided, from_plain, plain, prefixed
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

OF_RANKS = ("UNITSPHERE_RUN_OF_RANKS", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    first = arguments[0] if arguments else ""
    if first.startswith("resume="):
        if len(arguments) > 1:
            raise UsageError(f"resume= goes on exactly as it began; leave out {' '.join(arguments[1:])}")
        return resume(first.removeprefix("resume="))
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
    own = [o for o in typed if o.lstrip("+~").startswith(("compression.", "calibration@", "index@"))]
    fixed = [hydra_app.quoted(f"{key}={run.folder}") for key in ("model", "outputs")]
    fixed.append(f"compression=[{','.join(steps)}]")
    settings = [f"seed={run.config.seed}", f"threads={run.config.trainer.threads}"]
    line = [sys.executable, "-m", "unitsphere", "compress", *fixed, *own, *settings]
    alone = {k: v for k, v in os.environ.items() if k not in OF_RANKS}
    if subprocess.run(line, env=alone).returncode:
        raise UsageError(
            f"{run.folder} is trained; compressing it failed, and can be tried again: {' '.join(line[3:])}"
        )


def job(config: DictConfig, recovery: Sequence[str] = ()) -> None:
    """Compose, make the folder, and carry it out."""
    from hydra.core.hydra_config import HydraConfig

    from unitsphere.process import cpu_threads
    from unitsphere.report import ladder

    typed = list(HydraConfig.get().overrides.task)
    config = hydra_app.resolved(config)
    if config.threads == "auto":
        config.threads = cpu_threads()
    if config.target is not None:  # before hours of work
        asked = {name for name, _, _ in ladder.conditions(config.target)} - {"quality", "size", "vector"}
        if asked and not config.measure:
            raise UsageError(f"target: {', '.join(sorted(asked))} would have to be measured: leave out measure=false")
    rungs = chains(config, recovery)
    hydra_app.make_absolute(config)
    if Path(config.model).expanduser().exists():
        config.model = str(Path(config.model).expanduser().resolve())
    of_run = run_of(config.model)
    if config.get("data") is None and of_run is not None:
        config.data = of_run.config.data
    if of_run is not None and "eval" not in map(group, typed):
        config.eval = scored_on(of_run) or config.eval
    work = Work(config, typed)
    folder = (Path(config.outputs) / "compressed" / Path(config.model).name).resolve()
    for file in sorted(folder.glob("*/run.json")):
        if Run(file.parent).info["status"] == "killed":
            sys.stdout.write(f"{file.parent} was cut; this is a new one. To go on: compress resume={file.parent}\n")
    run = Run.create(folder, stamped("compress"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    write(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([*typed, *map(prefixed, recovery)])))
    write(run.folder / "rungs.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(rungs))))
    run.note(status="created", model=config.model, choices={})
    go(run, work, rungs)


def resume(path: str) -> None:
    """Go on with one that was cut.

    Raises:
        UsageError: It is no such folder, it is done, or another process is at it.
    """
    run = Run.open(path)
    status = run.info["status"]
    if not (run.folder / "rungs.yaml").exists():
        raise UsageError(f"resume={path}: no folder of `unitsphere compress`, which holds rungs.yaml")
    if status in ("done", "running"):
        raise UsageError(f"resume={path}: it is {status}")
    run = Run(run.folder.resolve())
    typed: Any = OmegaConf.to_container(OmegaConf.load(run.folder / "overrides.yaml"))
    rungs: Any = OmegaConf.load(run.folder / "rungs.yaml")
    go(run, Work(run.config, divided(typed)[1]), from_plain(rungs))


def go(run: Run, work: Work, rungs: Mapping[str, Chain]) -> None:
    """Make every rung, score it, measure them all, print and save."""
    from unitsphere.process import quiet

    quiet()
    with run.lock():
        run.note(**provenance(), status="running", threads=run.config.threads)
        try:
            work.climb(run, rungs)
        except BaseException as error:
            run.note(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        run.note(status="done", error=None)
    report(run, run.config.target)


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


def scored_on(run: Run) -> DictConfig:
    """The evaluators of a run but for geometry, whose numbers have no share that could be kept."""
    return OmegaConf.create({name: node for name, node in run.config.eval.items() if name != "geometry"})
