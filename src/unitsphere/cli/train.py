"""`unitsphere train`: compose, make the run folder, train, print the table."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import compress, hydra_app, sweep
from unitsphere.cli.chain import check_init
from unitsphere.errors import Pruned, UsageError
from unitsphere.runs import Run, cell, stamped, write

RUN_OF_RANKS = "UNITSPHERE_RUN_OF_RANKS"  # set by the first process of a run for those that Lightning starts from it


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `train.py` and `unitsphere train`."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    folder = Path(typed[0].partition("=")[2]) if len(typed) == 1 and typed[0].startswith("resume=") else None
    if folder is not None and (folder / "multirun.yaml").exists():
        typed = sweep.again(folder)
    hydra_app.run("train", job, typed)


def job(config: DictConfig) -> float:
    """One run; returns the chosen checkpoint's dev metric, which a sweeper can optimise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    run = joined()
    if run is not None:
        return go(run)
    hydra = HydraConfig.get()
    if config.resume is not None:
        others = [typed for typed in hydra.overrides.task if not typed.startswith("resume=")]
        if others:
            raise UsageError(f"resume= goes on exactly as the run began; leave out {' '.join(others)}")
        return resume(config.resume)
    if hydra.mode == RunMode.MULTIRUN:
        return job_of_sweep(config, hydra)
    return go(start(hydra_app.resolved(config), list(hydra.overrides.task), dict(hydra.runtime.choices)))


def job_of_sweep(config: DictConfig, hydra: Any) -> float:
    """One cell: run it, go on with it, or leave it if it is done. What goes wrong in it is said, and ends no sweep."""
    from unitsphere.report.table import show

    folder, typed = Path(hydra.sweep.dir), list(hydra.overrides.task)
    sharing = at_once(hydra.launcher)
    try:
        if config.trainer.devices != 1:
            raise UsageError("a cell of -m has one device: leave out trainer.devices")
        if hydra.launcher.get("n_jobs", 1) != 1:
            from unitsphere.training import gpus

            gpus.take_one()
        run = start(hydra_app.resolved(config), typed, dict(hydra.runtime.choices), folder, sharing)
        status = run.info["status"]
        if status in ("done", "running"):
            show(f"{run.folder}: {'done before' if status == 'done' else 'another process is at it'}")
            return chosen_by(run) if status == "done" else float("nan")
        return go(run, pruning(hydra.sweeper, folder))
    except Pruned as error:
        show(f"{run.folder}: pruned: {error}")
        return float("nan")
    except Exception as error:  # whatever it is: the other cells do not depend on it
        if not isinstance(error, UsageError):
            traceback.print_exc()
        show(f"this cell failed: {' '.join(typed)}: {error or type(error).__name__}")
        return float("nan")
    finally:
        show(str(sweep.state(folder)))


def at_once(launcher: Any) -> int:
    """How many cells share a machine's cores; -1 is one a core. A cell of Ray has the cores that Ray gives it, one by
    default."""
    if "ray" in launcher:
        from unitsphere.process import cpu_threads

        return max(1, cpu_threads() // int(launcher.ray.remote.get("num_cpus", 1)))
    return int(launcher.get("n_jobs") or 1)


def pruning(sweeper: Any, folder: Path) -> list[Any]:
    """The callback that ends a cell which Optuna has given up; none where Hydra sweeps a grid."""
    if sweeper.get("trial") is None:
        return []
    from unitsphere.training.pruning import Pruning

    return [Pruning(folder, sweeper.trial, sweeper.pruner)]


def start(
    config: DictConfig, overrides: list[str], choices: dict[str, str], folder: Path | None = None, at_once: int = 1
) -> Run:
    """Make the run's folder and save the configuration in it, first thing.

    Args:
        config: Resolved.
        overrides: What was typed.
        choices: Group -> option.
        folder: Of the sweep of which this run is a cell, if it is; the cell is there already where it was run before.
        at_once: Runs that share this machine's cores.
    """
    check_init(config.init, overrides)
    compress.check(config)
    name = settle(config, at_once)
    if folder is None:
        run = Run.create(Path(config.outputs) / config.name, stamped(f"s{config.seed}"))
    else:
        run = Run(folder / name)
        run.folder.mkdir(parents=True, exist_ok=True)
        if (run.folder / "run.json").exists():
            return known(run, overrides)
    with run.lock(seconds=60):  # an equal cell may begin at the same time
        if (run.folder / "run.json").exists():
            return known(run, overrides)
        write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
        write(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
        chosen = {group: option for group, option in choices.items() if "/" not in group}
        run.note(status="created", name=config.name, choices=chosen, sweep=str(folder) if folder else None)
    return run


def known(run: Run, overrides: list[str]) -> Run:
    """A cell that is there. Where it was typed in another way, that is noted once it is done: it counts for both."""
    ways = [sweep.typed(run.folder), *run.info.get("equal", ())]
    if run.info["status"] == "done" and sorted(overrides) not in map(sorted, ways):
        run.note(equal=[*ways[1:], overrides])
    return run


def settle(config: DictConfig, at_once: int = 1) -> str:
    """Replace what depends on where it is typed: relative paths, then `auto` settings. Changes the configuration.

    Returns:
        Its name as a cell of a sweep, which is the same on every machine.
    """
    from unitsphere.training.trainer import make_concrete

    hydra_app.make_absolute(config)
    name = cell(config)
    make_concrete(config, at_once)
    return name


def joined() -> Run | None:
    """The run of the process that started this one as a further rank of it; None in the first process.

    Raises:
        UsageError: Something else has started several, which would make a run each.
    """
    folder = os.environ.get(RUN_OF_RANKS)
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if folder is None and int(os.environ.get(variable) or 1) > 1:
            raise UsageError(
                f"{variable}={os.environ[variable]}: torchrun, srun or the like has started several processes. Start "
                "one, on one machine; trainer=ddp trainer.devices=N starts the others"
            )
    return Run(Path(folder), writes=False) if folder and int(os.environ.get("LOCAL_RANK", "0")) > 0 else None


def resume(path: str) -> float:
    """Go on with a run that was cut.

    Raises:
        UsageError: It is no run folder, it is done, or another process is at it.
    """
    run = Run.open(path)
    status = run.info["status"]
    if status in ("done", "running"):
        raise UsageError(f"resume={path}: this run is {status}." + " See `unitsphere reproduce`." * (status == "done"))
    return go(run)


def go(run: Run, callbacks: Sequence[Any] = ()) -> float:
    """Train in a run's folder from its saved configuration, print what came out, and compress it, where it is to be. A
    run of which only the latter is missing is not trained again.

    Args:
        run: Its folder.
        callbacks: Lightning's, besides those of the configuration.
    """
    if run.info["status"] != "trained":
        _train(run, callbacks)
    try:
        compress.after_training(run)
    finally:
        if run.config.get("compression"):
            _report(run)  # again, with what became of that
    return chosen_by(run)


def _train(run: Run, callbacks: Sequence[Any]) -> None:
    from unitsphere.report import table
    from unitsphere.training.run import train

    if run.writes:
        os.environ[RUN_OF_RANKS] = str(run.folder.resolve())
    try:
        metrics = train(run.config, run, callbacks)
        _report(run)
    finally:
        if run.writes and "wandb" in run.config.logger:
            from unitsphere.report import to_wandb

            to_wandb.finish(run)
    info = run.info
    if metrics:
        table.show(table.before_after(metrics, info["best_step"], info["steps"]))
    table.show(f"{run.folder}  ({info['wall_seconds']:.0f} s, {info['peak_memory_gib']} GiB)")


def _report(run: Run) -> None:
    """Write the run's page and the model's card; one that fails loses no run."""
    from unitsphere.card import card
    from unitsphere.cli import report

    try:
        report.of_run(run)
        write(run.folder / "model" / "README.md", card(run))
    except Exception as error:
        sys.stderr.write(f"report.html or model/README.md was not written: {type(error).__name__}: {error}\n")


def chosen_by(run: Run) -> float:
    """The dev metric of the chosen checkpoint; not a number where dev did not choose."""
    value = run.info["selected"]["value"]
    return float("nan") if value is None else float(value)


if __name__ == "__main__":
    main()
