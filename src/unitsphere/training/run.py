"""One run from a resolved configuration: score, train, choose, score again, save.

The order matters: everything that can be wrong with the input is found before a model is loaded, and everything is
written as soon as it is known, so that a killed run has lost nothing that a resumed one needs.
"""

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file

from unitsphere import artefact, paths, ranks
from unitsphere.build import build, build_evaluators
from unitsphere.data.batches import Batches
from unitsphere.data.leakage import told as told_leak
from unitsphere.data.preparation.step import prepare, told
from unitsphere.data.rows import Rows
from unitsphere.embedder import Embedder
from unitsphere.encoders.transformer import transformer
from unitsphere.errors import Pruned, UsageError
from unitsphere.evaluation.score import remarks, score, scores_nothing
from unitsphere.evaluation.stored import remembered
from unitsphere.process import forget_peak, leave, peak_memory, quiet
from unitsphere.runs import Run, provenance
from unitsphere.training import curves
from unitsphere.training.module import EmbeddingModule
from unitsphere.training.selection import LAST_STEP, saved_step
from unitsphere.training.sharding import sharded, take, whole
from unitsphere.training.together import SharedEmbed, clock, together
from unitsphere.types import Evaluator, Loss, Result

LAST = "checkpoints/last.ckpt"
BEST = "checkpoints/best.safetensors"
EVALUATION = (
    "The evaluator's max_length (data.eval_max_length for the data's own queries)"  # how to keep more of a text
)
CPU = torch.device("cpu")


def train(config: DictConfig, run: Run, callbacks: Sequence[pl.Callback] = ()) -> dict[str, float]:
    """Carry out a run, or go on with one that was killed, and return its metrics. A further rank's process ends here.

    Args:
        config: Resolved; `auto` settings made concrete.
        run: Its folder. Where it holds a checkpoint, training goes on from there.
        callbacks: Besides those of the configuration.

    Raises:
        UsageError: Something in the configuration or the data does not fit.
        Pruned: A sweeper has given the run up.
    """
    quiet()
    forget_peak()
    began = time.monotonic()
    with run.lock():  # before anything is noted: what another process is working on is that process's
        run.note(**provenance(), status="running", seed=config.seed, threads=config.trainer.threads)
        try:
            metrics = _train(config, run, callbacks)
        except BaseException as error:
            ended = {Pruned: "pruned", KeyboardInterrupt: "interrupted", SystemExit: "interrupted"}
            status = ended.get(type(error), "failed")
            run.note(status=status, error=f"{type(error).__name__}: {error}")
            raise
        if not run.writes:
            leave()
        wall = round(time.monotonic() - began, 1)
        status = "trained" if config.get("compression") else "done"  # what compresses it comes after this
        run.note(status=status, error=None, wall_seconds=wall, peak_memory_gib=_peak_gib())
    return metrics


def _train(config: DictConfig, run: Run, more: Sequence[pl.Callback]) -> dict[str, float]:
    pl.seed_everything(config.seed, verbose=False)
    loss, optim, sampler, data = (build(config[group]) for group in ("loss", "optim", "sampler", "data"))
    steps = {name: build(node) for name, node in (config.get("preparation") or {}).items()}
    check_needs(loss, [*config.data.columns, *(column for step in steps.values() for column in step.gives)])
    if not loss.embeds and (config.eval or config.select != LAST_STEP):
        raise UsageError(
            "what this loss trains does not embed texts, so eval= can neither score it nor choose among its steps: add "
            "eval=none select=last, and score it as a reranker: unitsphere evaluate model=… eval=[retrieval,hybrid] "
            "eval.hybrid.reranker=RUN"
        )
    if not loss.embeds and config.get("compression"):
        raise UsageError("what this loss trains does not embed texts, and compression=… is for what does")
    rows, prepared = prepare(data.splits.train, steps, config.seed)
    for column in loss.needs:
        if getattr(rows, column) is None:  # a mixture keeps the columns that all of its sources have
            raise UsageError(f"this loss reads {column}, which not all of the data has: data={data.name}")
    run.note(preparation=prepared)
    _say(run, *map(told, prepared))
    dev = [] if config.select == LAST_STEP else build_evaluators(config.eval, "dev", data.splits.dev)
    if config.select != LAST_STEP and scores_nothing(dev):
        why = "eval is empty" if not dev else f"what eval names ({', '.join(config.eval)}) scores nothing on dev"
        raise UsageError(
            f"{why}, so dev cannot choose a checkpoint: name evaluators that score it, e.g. retrieval or sts, or set "
            "select=last"
        )
    test = build_evaluators(config.eval, "test", data.splits.test)
    if config.get("leakage"):
        rows = _without_leaks(config.leakage, rows, {"test": test, "dev": dev}, run)
    checkpoint = run.folder / LAST if (run.folder / LAST).exists() else None
    read = {"name": data.name, **data.splits.provenance()}
    if rows is not data.splits.train:
        read["prepared"] = {"rows": len(rows), "sha256": rows.fingerprint}
    if checkpoint is not None and run.info["data"] != read:
        raise UsageError(f"{run.folder}: the data is not what this run was trained on; it cannot be resumed.")
    run.note(data=read)
    trainer = _build_trainer(config, run, more)
    divides = isinstance(trainer.strategy, ModelParallelStrategy)  # layer by layer: no GPU has to hold the whole
    embedder = build_embedder(config, CPU if divides else trainer.strategy.root_device)
    width = embedder.dim
    for node in (config.get("compression") or {}).values():  # what will not fit is known before hours of training
        width = build(node).width(width)
    loss.attach(embedder)
    loss.train()  # networks that it loaded come in the mode of evaluation
    if loss.views == 0:
        for unread in (embedder.pooling, embedder.projection, embedder.windows):
            if unread is not None:
                unread.requires_grad_(False)  # DDP waits for the gradients of all that is trained
    batches = Batches(
        rows,
        {*loss.needs, *loss.optional},
        sampler,
        embedder.encoder,
        embedder.prompts,
        data.batch_size,
        data.max_length,
        config.seed,
        paths.cache(),
    )
    batches.rank, batches.world = trainer.global_rank, trainer.world_size
    run.note(
        device=str(trainer.strategy.root_device),
        parameters=sum(p.numel() for p in embedder.parameters()),
        embedder=embedder.protocol(),
    )
    run.note_cut("train", _of_training(batches), "data.max_length")
    first = saved_step(checkpoint) if run.writes and checkpoint else 0
    if run.writes:
        curves.cut(run.folder / "metrics.csv", first if checkpoint else -1)
    if checkpoint is None and divides:
        before = pl.callbacks.LambdaCallback(on_train_start=lambda *_: _score(run, "before", test, embedder, config))
        trainer.callbacks.insert(0, before)
    elif checkpoint is None and run.writes:
        _score(run, "before", test, embedder, config)
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config))
    torch.manual_seed(config.seed + trainer.global_rank)  # each rank has its own dropout
    untrained = partial(remembered, embedder, config.get("vector_cache") or 0)
    module = EmbeddingModule(embedder, loss, optim, dev, config.get("eval_seconds"), untrained)
    device = next(embedder.parameters()).device
    began = time.monotonic()
    trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    run.note(train_seconds=round(time.monotonic() - began, 1), train_steps=trainer.global_step - first)
    if divides and checkpoint is None and trainer.global_step == 0:  # without a step there is no start of training
        _score(run, "before", test, embedder, config)
    run.note_cut("train", _of_training(batches), "data.max_length")  # rows on disk are tokenised as training goes
    run.note_cut("dev", module.read_dev, EVALUATION)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not (run.writes or divides):
        return {}

    if not divides:
        embedder.to(device)  # Lightning leaves it on the CPU
    selection = trainer.checkpoint_callback
    run.note(
        steps=trainer.global_step, best_step=selection.best_step, selected=selection.selected, looks=selection.looks
    )
    for look in selection.looks:
        if look["step"] == selection.best_step:
            run.add_metrics({f"dev/{k}": v for k, v in look["metrics"].items()})
    if selection.best_step != trainer.global_step:
        _score(run, "last", test, embedder, config)
        take(embedder, load_file(run.folder / BEST))
        embedder.encoder.headed = ()  # a head of the last step does not belong to an earlier encoder
    _save(run, embedder, config)
    result = _score(run, "test", test, embedder, config)
    run.note(protocol=result.protocol, primary=result.primary)
    if selection.best_step == trainer.global_step:
        run.add_metrics({f"last/{k}": v for k, v in result.metrics.items()})
        run.add_items("last", result.items)
    return run.metrics if run.writes else {}


def check_needs(loss: Loss, columns: Collection[str]) -> None:
    """Fail before anything is loaded where the loss reads a column that the data does not have.

    Raises:
        UsageError: It names the data options that would fit.
    """
    needs = loss.needs
    lacking = [column for column in needs if column not in columns]
    if lacking:
        fitting = [
            option.stem
            for option in sorted((paths.conf() / "data").glob("*.yaml"))
            if set(needs) <= set(OmegaConf.load(option).columns)
        ]
        raise UsageError(
            f"this loss reads {', '.join(needs)}, and the data has no {', '.join(lacking)} "
            f"(it has {', '.join(columns)}). Data that would fit: data={'|'.join(fitting)}, "
            f"or name the column: +data.columns.{lacking[0]}=…"
        )


def _without_leaks(
    node: Mapping[str, Any], rows: Rows, evaluators: Mapping[str, Sequence[Evaluator]], run: Run
) -> Rows:
    """The rows that may be trained on; what was found is noted and said, even where it then stops the run."""
    leakage = build(node)
    rows, reports = leakage(rows, evaluators)
    run.note(leakage=reports)
    _say(run, *(told_leak(report) for report in reports if report["found"] or report["apart"]))
    leakage.check(reports)
    return rows


def build_embedder(config: DictConfig, device: torch.device = CPU) -> Embedder:
    """The embedder that the configuration describes, or, with `init`, a run's or folder's with its pooling, projection
    and prompts; then only the encoder's settings (dropout, LoRA, …) are the configuration's, not its path.

    Raises:
        UsageError: It cannot be trained, or evaluation would not read what training does.
    """
    if config.init is not None:
        settings = signature(transformer).parameters.keys() - {"path", "max_length"}
        chosen = OmegaConf.to_container(config.encoder)
        assert isinstance(chosen, dict)
        options = {str(key): value for key, value in chosen.items() if key in settings}
        embedder = artefact.load(config.init, config.get("window"), **options)
        if not isinstance(embedder, Embedder):
            raise UsageError(f"init={config.init}: a {type(embedder).__name__}, and only an encoder can be trained.")
    else:
        embedder = artefact.assemble(build(config.encoder), config.pooling, config.embedder, config.get("window"))
    later = {"embedder.projection_dim": embedder.projection, "window": embedder.windows}
    trained = [key for key, part in later.items() if part is not None and [*part.parameters()]]
    if embedder.pooling.train_only and trained:
        raise UsageError(
            f"pooling.train_only=true and {trained[0]}: that would be trained on what the MLP makes, and evaluation "
            "would give it something else; set one of them to false or null"
        )
    return embedder.to(device).float().train()


def _build_trainer(config: DictConfig, run: Run, more: Sequence[pl.Callback]) -> Any:
    """Lightning's trainer with the configured loggers and callbacks.

    Raises:
        UsageError: Lightning refuses a setting.
    """
    loggers = [build(node, save_dir=str(run.folder)) for node in config.logger.values()]
    callbacks = [*(build(node) for node in config.callbacks.values()), *more]
    try:
        return build(config.trainer, default_root_dir=str(run.folder), logger=loggers, callbacks=callbacks)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UsageError(f"trainer: {error}") from error


def _save(run: Run, embedder: Embedder, config: DictConfig) -> None:
    """Write model/. Where the ranks have divided the weights every one must call this, and all fail together."""
    if not sharded(embedder):
        artefact.save(embedder, run.folder / "model")
        return
    weights = whole(embedder)
    try:
        if run.writes:
            undivided = build_embedder(config)
            undivided.load_state_dict(weights)
            artefact.save(undivided, run.folder / "model")
    except Exception as error:  # raised again there, after the others have been told
        ranks.all_well(error)
    ranks.all_well()


def _score(run: Run, stage: str, test: list[Evaluator], embedder: Embedder, config: DictConfig) -> Result:
    """On test, into the run's folder. Every rank must call this where they have divided the weights."""
    embed, seconds = embedder.embed, config.get("eval_seconds")
    if stage == "before" and not sharded(embedder):  # only the untrained model will be scored again, by other runs
        embed = remembered(embedder, config.get("vector_cache") or 0)
    with embedder.counting() as read:
        if sharded(embedder):
            shared = SharedEmbed(embed, embedder.device, divide=False)
            result = together(lambda: score(test, shared, seconds, clock))
        else:
            result = score(test, embed, seconds)
    run.note_cut("test", read, EVALUATION)
    _say(run, *(f"{stage}/{line}" for line in remarks(result, seconds)))
    run.add_metrics({f"{stage}/{k}": v for k, v in result.metrics.items()})
    run.add_items(stage, result.items)
    return result


def _say(run: Run, *lines: str) -> None:
    """Print lines, in the one process of a run that writes."""
    if run.writes:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()


def _of_training(batches: Batches) -> dict[tuple[str, int], tuple[int, int]]:
    return {("all columns", batches.max_length): batches.truncated}


def _peak_gib() -> float | None:
    """The run's largest resident memory; None where the system does not tell."""
    try:
        return round(peak_memory() / 1024, 2)
    except ImportError:
        return None
