"""A model on disk: one folder that unitsphere, transformers and (where it has the pooling) sentence-transformers load.

    config.json, model.safetensors, tokenizer…   the encoder, as transformers saves it
    head.safetensors                             weights of pooling, projection and windows, where they have any
    unitsphere.yaml                              the config nodes of pooling, embedder and window
    modules.json, 1_Pooling/…                    the same for sentence-transformers (see `modules_json`)

A cross-encoder's folder has the first line alone, classifier included: it scores pairs and embeds nothing. A model that
is no `Embedder` writes what it likes, and its unitsphere.yaml says `load:` and one of `LOADERS`, which makes it again.

Loading runs no code of the folder's choice: its unitsphere.yaml may name `PARTS`, classes derived from them (also ones
of your own, where they can be imported) and layers of torch.nn, and nothing else.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from unitsphere import modules_json, paths
from unitsphere.build import build, check_targets
from unitsphere.embedder import Embedder
from unitsphere.encoders.cross_encoder import scores_pairs
from unitsphere.encoders.transformer import TransformerEncoder, transformer
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.pooling.base import Pooling
from unitsphere.pooling.windows import Windows

PARTS = (Pooling, Windows, Embedder)
LOADERS = ("unitsphere.static.load", "unitsphere.coded.load", "unitsphere.graph.load")


def assemble(
    encoder: TransformerEncoder,
    pooling: Mapping[str, Any],
    embedder: Mapping[str, Any],
    window: Mapping[str, Any] | None = None,
) -> Embedder:
    """Build an embedder from the resolved config nodes of its parts, which it remembers for saving."""
    pooler = build(pooling, dim=encoder.dim)
    windows = window and build(window, encoder=encoder, dim=embedder.get("projection_dim") or pooler.dim)
    built: Embedder = build(embedder, encoder=encoder, pooling=pooler, windows=windows)
    built.nodes = {"pooling": plain(pooling), "embedder": plain(embedder)}
    if window is not None:
        built.nodes["window"] = plain(window)
    return built


def plain(node: Mapping[str, Any]) -> Any:
    """A config node as Python objects."""
    return OmegaConf.to_container(node) if isinstance(node, DictConfig) else dict(node)


def save(model: Model, folder: Path) -> None:
    """Write the model; the folder appears whole or not at all.

    Args:
        model: An embedder made by `assemble`, or what has a `write` of its own.
        folder: Replaced where it exists.
    """
    work = folder.with_name(folder.name + ".writing")
    shutil.rmtree(work, ignore_errors=True)
    if isinstance(model, Embedder):
        _write(model, work)
    else:
        work.mkdir(parents=True)
        model.write(work)
    _let_others_read(work)
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)


def _let_others_read(folder: Path) -> None:
    """Give files the mode that the umask says; safetensors makes its own for their owner alone."""
    umask = os.umask(0o077)  # cannot be asked for without being set
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)


def _write(embedder: Embedder, work: Path) -> None:
    embedder.encoder.exported().save_pretrained(work)
    tokenizer = embedder.encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # what the last call, or whoever saved it before, left in it is no part of the model
        backend.no_padding()
        backend.enable_truncation(embedder.encoder.max_length)
    tokenizer.save_pretrained(work)
    if not scores_pairs(work):
        head = _head(embedder)
        if head:
            save_file(head, work / "head.safetensors")
        keep = {**embedder.nodes, "max_length": embedder.encoder.max_length}
        if embedder.dtype != torch.float32:
            keep["dtype"] = str(embedder.dtype).removeprefix("torch.")
        OmegaConf.save(OmegaConf.create(keep), work / "unitsphere.yaml")
        modules_json.write(embedder, work)


def load(path: str | Path, window: Mapping[str, Any] | None = None, **options: Any) -> Model:
    """Load a run's model, a model folder of ours, a sentence-transformers folder or hub model, or any transformers
    model (which is then mean-pooled and normalised).

    Args:
        path: A run folder, a model folder or a hub id.
        window: The config node of windows that replace the model's own, if it has any; learned ones start anew.
        options: For the encoder, as for `transformer` (dropout, attention, …).

    Returns:
        A `Model`: an `Embedder`, or what the loader that unitsphere.yaml names gives.

    Raises:
        UsageError: Nothing loadable is at `path`, it has modules that have no counterpart here, its unitsphere.yaml
            names what is no part of a model, or it scores pairs; or a window is given to what is no `Embedder`.
    """
    folder = paths.model(path) or _hub_settings(str(path))
    saved: dict[str, Any] = {}
    if folder is not None and (folder / "unitsphere.yaml").exists():
        saved = plain(OmegaConf.load(folder / "unitsphere.yaml"))  # type: ignore[arg-type]
        check_targets(saved, PARTS, folder / "unitsphere.yaml")
    elif folder is not None and (folder / "modules.json").exists():
        saved = modules_json.read(folder)
    elif folder is not None and (folder / "config.json").exists() and scores_pairs(folder):
        raise UsageError(
            f"{path}: a cross-encoder, which scores pairs of texts and embeds none. It reranks: eval=hybrid "
            f"eval.hybrid.reranker={path}. Its encoder is a start: encoder=hub encoder.path={path}"
        )
    if "load" in saved:
        if saved["load"] not in LOADERS:
            raise UsageError(f"{folder}/unitsphere.yaml: load={saved['load']}: {', '.join(LOADERS)} would fit.")
        if window is not None:
            raise UsageError(f"window=…: {path} is no encoder with pooling, the kind of model that windows go with.")
        there = folder if paths.model(path) else Path(snapshot_download(str(path)))
        other: Model = build({"_target_": saved["load"]}, folder=there)
        return other
    options["max_length"] = options.get("max_length") or saved.get("max_length")
    node = saved.get("embedder") or {"_target_": "unitsphere.embedder.Embedder"}
    embedder = assemble(
        transformer(str(path), **options),
        saved.get("pooling") or modules_json.MEAN,
        node,
        window or saved.get("window"),
    )
    head = saved.get("head", {})
    if folder is not None and (folder / "head.safetensors").exists():
        head = load_file(folder / "head.safetensors")
    if window is not None:
        anew = {name: weight for name, weight in _head(embedder).items() if name.startswith("windows.")}
        head = {name: weight for name, weight in head.items() if not name.startswith("windows.")} | anew
    missing = _head(embedder).keys() ^ head.keys()
    if missing:
        raise UsageError(f"{folder}: head.safetensors does not fit unitsphere.yaml; unmatched: {sorted(missing)}")
    embedder.load_state_dict(head, strict=False)
    return embedder.to(getattr(torch, saved.get("dtype", "float32"))).eval()


def _hub_settings(name: str) -> Path | None:
    """A hub model's pooling, prompts and length, without its encoder; None where no hub has it."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.yaml", "*_Dense/*", "head.safetensors"]))
    except (OSError, ValueError):
        return None


def _head(embedder: Embedder) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in embedder.state_dict().items() if not k.startswith("encoder.")}
