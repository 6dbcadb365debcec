"""`unitsphere evaluate`: score a model that is already there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

if TYPE_CHECKING:
    from unitsphere.model import Model


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("eval", job, arguments, verb="evaluate")


def job(config: DictConfig) -> None:
    """Check what was asked for, score it and print."""
    from unitsphere.process import cpu_threads
    from unitsphere.report import pictures, table

    config = hydra_app.resolved(config)
    check_model(config)
    if config.split not in ("dev", "test"):
        raise UsageError(f"split={config.split}: dev or test would fit.")
    if config.threads == "auto":
        config.threads = cpu_threads()
    hydra_app.make_absolute(config)
    if config.model is not None and Path(config.model).expanduser().exists():
        config.model = str(Path(config.model).expanduser().resolve())  # so that a table finds the run from any folder
    name = Path(config.model).name if config.model is not None else config.encoder._target_.rsplit(".", 1)[-1]
    run = evaluate(config, Path(config.outputs) / "evaluations" / name)
    table.show(table.scores({k.partition("/")[2]: v for k, v in run.metrics.items()}, config.split))
    pictures.write(run)
    table.show(str(run.folder))


def evaluate(config: DictConfig, parent: Path) -> Run:
    """Build or load the embedder, score it, and save the scores in a new folder under `parent`.

    Raises:
        UsageError: There is nothing to score, or no such model; no folder is made then.
    """
    import torch

    from unitsphere.build import build_evaluators
    from unitsphere.evaluation.score import remarks, score
    from unitsphere.evaluation.stored import remembered
    from unitsphere.process import quiet
    from unitsphere.report import table

    quiet()
    torch.set_num_threads(config.threads)
    embedder = embedder_of(config)
    evaluators = build_evaluators(config.eval, config.split, own(config, config.split))
    if not evaluators:
        raise UsageError("eval is empty: choose what to score, e.g. eval=retrieval or eval=[sts,retrieval]")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedder.to(device)
    began, seconds = provenance(), config.get("eval_seconds")
    with embedder.counting() as read:
        result = score(evaluators, remembered(embedder, config.get("vector_cache") or 0), seconds)
    if not result.protocol:
        raise UsageError(f"what eval names ({', '.join(config.eval)}) has nothing to score on {config.split}")
    run = Run.create(parent, stamped("eval"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    run.note(**began, status="running", device=device, threads=config.threads, embedder=embedder.protocol())
    with run.lock():
        run.note_cut(config.split, read, "The evaluator's max_length")
        for line in remarks(result, seconds):
            table.show(line)
        run.add_metrics({f"{config.split}/{k}": v for k, v in result.metrics.items()})
        run.add_items(config.split, result.items)
        run.note(status="done", protocol=result.protocol, primary=result.primary)
    return run


def check_model(config: DictConfig) -> None:
    """Raises:
    UsageError: Not exactly one of `model` and `encoder` is given, or a pooling for a model, which has its own.
    """
    if (config.model is None) == ("encoder" not in config):
        raise UsageError("give one of model=… (a run, a folder, a hub id) and encoder=… (an option)")
    if config.model is not None and "pooling" in config:
        raise UsageError("pooling= is for encoder=…; a model brings its own")


def embedder_of(config: DictConfig) -> "Model":
    """The model, or the encoder with the pooling given, or mean.

    Raises:
        UsageError: See `check_model`; or nothing loadable is there.
    """
    from unitsphere import artefact, modules_json
    from unitsphere.build import build

    check_model(config)
    if config.model is not None:
        return artefact.load(config.model, config.get("window"))
    pooling = config.get("pooling") or modules_json.MEAN
    return artefact.assemble(build(config.encoder), pooling, config.embedder, config.get("window")).eval()


def own(config: DictConfig, split: str) -> Any:
    """The queries of the data given, else of the data that the run was trained on; None where there is neither."""
    from unitsphere.build import build

    node = config.get("data")
    if node is None and config.model is not None and (Path(config.model) / "config.yaml").exists():
        node = Run.open(config.model).config.data
    return getattr(build(node).splits, split) if node is not None else None
