"""`unitsphere export`: a model in a form that others serve."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("export", job, arguments)


def job(config: DictConfig) -> None:
    """Export into a folder that appears whole or not at all.

    Raises:
        UsageError: The folder is there already, or what the form says.
    """
    import torch
    from hydra.core.hydra_config import HydraConfig

    from unitsphere import artefact
    from unitsphere.build import build
    from unitsphere.process import cpu_threads, quiet
    from unitsphere.report.table import show

    quiet()
    config = hydra_app.resolved(config)
    torch.set_num_threads(cpu_threads() if config.threads == "auto" else config.threads)
    form = HydraConfig.get().runtime.choices["to"]
    default = Path(config.outputs) / "exports" / Path(config.model).name / str(form)
    out = Path(config.out).expanduser() if config.out else default
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out}: there is something already; name a new folder")
    exporter = build(config.to)
    model = artefact.load(config.model)
    work = out.with_name(out.name + ".writing")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        said = exporter(model, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    show(f"{out}  ({size / 1e6:.1f} MB; {said}, over 256 texts of all lengths)")
