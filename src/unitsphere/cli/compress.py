"""`unitsphere compress`: make a model smaller, step by step or rung by rung, and measure what that costs."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app, sweep
from unitsphere.cli.chain import group
from unitsphere.cli.climb import Work, run_of
from unitsphere.cli.rungs import Chain, chains, divided, from_plain, plain, prefixed
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

OF_RANKS = ("UNITSPHERE_RUN_OF_RANKS", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    folder = next((typed for typed in arguments if typed.startswith("resume=")), None)
    if folder is not None and not {"-h", "--help"} & set(arguments):
        others = [typed for typed in arguments if typed != folder]
        if others:
            raise UsageError(f"resume= goes on exactly as it began; leave out {' '.join(others)}")
        return resume(folder.removeprefix("resume="))
    own, others = divided(arguments)
    hydra_app.run("compress", partial(job, recovery=own), others)


def check(config: DictConfig) -> None:
    """Look at the steps that a run of train.yaml is to end with, before it has trained for hours.

    Raises:
        UsageError: They cannot follow each other, or nothing would score what they make.
    """
    if config.get("compression"):
        from unitsphere.compression.step import check_chain

        check_chain(Chain(config.compression).steps)
        if not config.eval:
            raise UsageError("compression=… is scored on what eval=… names, and that is nothing")


def after_training(run: Run) -> None:
    """`unitsphere compress` of a trained run that has steps of compression, scored as the run was, in its folder. One
    that was cut goes on.

    Raises:
        UsageError: It failed; what it said stands above.
    """
    if not run.config.get("compression"):
        return
    with run.lock():
        begun = [Run(file.parent) for file in sorted(run.folder.glob("compressed/*/*/rungs.yaml"))]
        if not begun or begun[-1].info["status"] != "done":
            again = [f"resume={begun[-1].folder}"] if begun else _of_run(run)
            alone = {k: v for k, v in os.environ.items() if k not in OF_RANKS}
            if subprocess.run([sys.executable, "-m", "unitsphere", "compress", *again], env=alone).returncode:
                run.note(error="UsageError: compressing it failed")
                raise UsageError(
                    f"{run.folder} is trained; compressing it failed. Once what failed is mended: unitsphere train "
                    f"{shlex.quote(f'resume={run.folder}')}; with other settings before it: unitsphere compress "
                    f"{shlex.quote(f'model={run.folder}')} {shlex.quote(f'outputs={run.folder}')} compression=…"
                )
        run.note(status="done", error=None)


def _of_run(run: Run) -> list[str]:
    """Arguments with which a run's steps of compression are carried out, whatever they were composed from."""
    folder = run.folder / "compressed" / "conf"
    (folder / "compression").mkdir(parents=True, exist_ok=True)
    write(folder / "compression" / "of_run.yaml", OmegaConf.to_yaml(run.config.compression))
    fixed = [hydra_app.quoted(f"{key}={run.folder}") for key in ("model", "outputs")]
    settings = [f"seed={run.config.seed}", f"threads={run.config.trainer.threads}"]
    return [f"--config-dir={folder}", *fixed, "compression=of_run", *settings]


def job(config: DictConfig, recovery: Sequence[str] = ()) -> None:
    """Compose, make the folder, and carry it out."""
    from hydra.core.hydra_config import HydraConfig

    from unitsphere.process import cpu_threads, quiet
    from unitsphere.report import ladder

    quiet()
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
    for file in sorted(folder.glob("*/rungs.yaml")):
        info = Run(file.parent).info
        if info["status"] not in ("done", "running") and "rungs" in info:
            again = shlex.quote(f"resume={file.parent}")
            sys.stdout.write(f"This is a new one. One that was cut goes on with: unitsphere compress {again}\n")
    run = Run.create(folder, stamped("compress"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    write(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([*typed, *map(prefixed, recovery)])))
    write(run.folder / "rungs.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(rungs))))
    run.note(status="created", model=config.model, choices={}, typed_in=Path.cwd(), inputs=work.inputs)
    go(run, work, rungs)


def resume(path: str) -> None:
    """Go on with one that was cut, in the folder where it was typed.

    Raises:
        UsageError: It is no such folder, it is done, another process is at it, or the model or the data has changed.
    """
    from unitsphere.process import quiet

    run = Run(Run.open(path).folder.resolve())
    info = run.info
    if not (run.folder / "rungs.yaml").exists():
        raise UsageError(f"resume={path}: no folder of `unitsphere compress` that can go on, which holds rungs.yaml")
    if info["status"] in ("done", "running"):
        raise UsageError(f"resume={path}: it is {info['status']}")
    quiet()
    if Path(info["typed_in"]).is_dir():
        os.chdir(info["typed_in"])
    hydra_app.import_from_here()
    work = Work(run.config, divided(sweep.typed(run.folder))[1])
    for what, before in info["inputs"].items():
        if work.inputs[what] != before:
            raise UsageError(f"resume={path}: the {what} is not what it was when this began; it cannot go on.")
    go(run, work, from_plain(yaml.safe_load((run.folder / "rungs.yaml").read_text(encoding="utf-8"))))


def go(run: Run, work: Work, rungs: Mapping[str, Chain]) -> None:
    """Make every rung, score it, measure them all, print and save."""
    with run.lock():
        if run.info["status"] == "done":
            raise UsageError(f"{run.folder}: another process has done it meanwhile")
        run.note(**provenance(), status="running", threads=run.config.threads)
        try:
            work.climb(run, rungs)
            report(run, run.config.target)
        except BaseException as error:
            cut = isinstance(error, KeyboardInterrupt | SystemExit)
            run.note(status="interrupted" if cut else "failed", error=f"{type(error).__name__}: {error}")
            raise
        run.note(status="done", error=None)


def report(run: Run, target: str | None) -> None:
    """Write and print the ladder, and the rung that meets the target."""
    from unitsphere.report import ladder
    from unitsphere.report.records import read
    from unitsphere.report.table import show

    notes = [f"left out: {rung}: {why}" for rung, why in run.info.get("failed", {}).items()]
    records = [read(run.folder)]
    if target is not None:
        chosen = ladder.smallest(ladder.lines(records), run.info["primaries"][0], target)
        notes.append(f"smallest with {target}: " + (f"{chosen} (models/{chosen})" if chosen else "none of these rungs"))
        run.note(target=target, chosen=chosen)
    ladder.save(records, run.folder / "ladder", run.folder / "pictures" / "ladder.png", notes)
    show(ladder.terminal(records))
    for line in (*notes, str(run.folder)):
        show(line)


def scored_on(run: Run) -> DictConfig:
    """The evaluators of a run but for geometry, whose numbers have no share that could be kept, and truncation, whose
    widths vectors that are cut do not have."""
    kept = {name: node for name, node in run.config.eval.items() if name not in ("geometry", "truncation")}
    return OmegaConf.create(kept)
