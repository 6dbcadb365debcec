"""A model on disk: one folder that unitsphere, transformers and (where it has the pooling) sentence-transformers load.

    config.json, model.safetensors, tokenizer…   the encoder, as transformers saves it
    head.safetensors                             weights of pooling, projection and windows, where they have any
    unitsphere.yaml                              the config nodes of pooling, embedder and window
    modules.json, 1_Pooling/…                    the same for sentence-transformers, which has no windows

A cross-encoder's folder has the first line alone, classifier included: it scores pairs and embeds nothing. A model that
is no `Embedder` writes what it likes, and its unitsphere.yaml says `load:` and one of `LOADERS`, which makes it again.

Loading runs no code of the folder's choice: its unitsphere.yaml may name `PARTS`, classes derived from them (also ones
of your own, where they can be imported) and layers of torch.nn, and nothing else.

Code: https://github.com/huggingface/sentence-transformers (the layout of its folders).
"""

import json
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

from unitsphere import paths
from unitsphere.build import build, check_targets
from unitsphere.embedder import Embedder
from unitsphere.encoders.cross_encoder import scores_pairs
from unitsphere.encoders.transformer import TransformerEncoder, transformer
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.pooling.base import Pooling
from unitsphere.pooling.cls import CLSMLPPooling
from unitsphere.pooling.windows import Windows

FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
POOLINGS = {
    ("cls",): "unitsphere.pooling.cls.CLSPooling",
    ("max",): "unitsphere.pooling.max.MaxPooling",
    ("mean",): "unitsphere.pooling.mean.MeanPooling",
    ("weightedmean",): "unitsphere.pooling.mean.WeightedMeanPooling",
    ("lasttoken",): "unitsphere.pooling.last_token.LastTokenPooling",
    ("max", "mean"): "unitsphere.pooling.max.MeanMaxPooling",
}
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
        _write_sentence_transformers(embedder, work)


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
        saved = _read_sentence_transformers(folder)
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
        saved.get("pooling") or {"_target_": POOLINGS["mean",]},
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


def ours_alone(embedder: Embedder) -> str | None:
    """What the model has that sentence-transformers or transformers lacks (see `encoders.pruned`); None for nothing."""
    if embedder.windows is not None:
        return "windows"
    if getattr(embedder.encoder.model.config, "pruned", None):
        return "cut heads or feed-forward layers of unequal width"
    return None if _modes(embedder) else type(embedder.pooling).__name__


def _modes(embedder: Embedder) -> tuple[str, ...]:
    pooling = embedder.pooling
    return pooling.sentence_transformers or (("cls",) if isinstance(pooling, CLSMLPPooling) else ())


def _write_sentence_transformers(embedder: Embedder, folder: Path) -> None:
    """Add that library's files where it can load the model; elsewhere the folder has none."""
    pooling, modules = embedder.pooling, [("", "Transformer")]
    modes = _modes(embedder)
    if ours_alone(embedder):
        return

    def add(kind: str, config: dict[str, Any] | None = None, weights: dict[str, Tensor] | None = None) -> None:
        name = f"{len(modules)}_{kind}"
        modules.append((name, kind))
        (folder / name).mkdir()
        if config is not None:
            _dump(folder / name / "config.json", config)
        if weights is not None:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / name / "model.safetensors"
            )

    width = embedder.encoder.dim
    flags = {flag: mode in modes for mode, flag in FLAGS.items()}
    add("Pooling", {"word_embedding_dimension": width, "include_prompt": embedder.pool_prompt} | flags)
    if isinstance(pooling, CLSMLPPooling) and not pooling.train_only:
        dense = {"in_features": width, "out_features": width, "bias": True}
        weights = {"linear.weight": pooling.dense.weight, "linear.bias": pooling.dense.bias}
        add("Dense", dense | {"activation_function": "torch.nn.modules.activation.Tanh"}, weights)
    if embedder.projection is not None:
        dense = {"in_features": pooling.dim, "out_features": embedder.dim, "bias": False}
        identity = {"activation_function": "torch.nn.modules.linear.Identity"}
        add("Dense", dense | identity, {"linear.weight": embedder.projection.weight})
    if embedder.normalize:
        add("Normalize")
    _dump(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": name, "type": f"sentence_transformers.models.{kind}"}
            for i, (name, kind) in enumerate(modules)
        ],
    )
    _dump(folder / "sentence_bert_config.json", {"max_seq_length": embedder.encoder.max_length, "do_lower_case": False})
    similarity = "cosine" if embedder.normalize else "dot"
    _dump(
        folder / "config_sentence_transformers.json",
        {"prompts": embedder.prompts, "default_prompt_name": embedder.default_prompt, "similarity_fn_name": similarity},
    )


def _read_sentence_transformers(folder: Path) -> dict[str, Any]:
    """The config nodes that say what a sentence-transformers folder says."""
    node: dict[str, Any] = {"_target_": "unitsphere.embedder.Embedder", "normalize": False}
    head: dict[str, Tensor] = {}
    saved: dict[str, Any] = {"embedder": node, "head": head}
    for module in json.loads((folder / "modules.json").read_text()):
        kind, place = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        config = json.loads((place / "config.json").read_text()) if (place / "config.json").exists() else {}
        if kind == "Pooling":
            modes = config.get("pooling_mode") or [m for m, flag in FLAGS.items() if config.get(flag)]
            modes = (modes,) if isinstance(modes, str) else tuple(modes)
            if modes not in POOLINGS:
                raise UsageError(
                    f"{place}/config.json: pooling {modes} has no counterpart here; known: {list(POOLINGS)}"
                )
            saved["pooling"] = {"_target_": POOLINGS[modes]}
            node["pool_prompt"] = config.get("include_prompt", True)
        elif kind == "Dense" and "Identity" in config["activation_function"] and not config["bias"]:
            node["projection_dim"] = config["out_features"]
            head["projection.weight"] = _dense(place)["linear.weight"]
        elif (
            kind == "Dense"
            and "Tanh" in config["activation_function"]
            and saved["pooling"]["_target_"].endswith("CLSPooling")
        ):
            saved["pooling"] = {"_target_": "unitsphere.pooling.cls.CLSMLPPooling"}
            head |= {f"pooling.dense.{k.removeprefix('linear.')}": v for k, v in _dense(place).items()}
        elif kind == "Normalize":
            node["normalize"] = True
        elif kind != "Transformer":
            raise UsageError(f"{folder}/modules.json: {module['type']} has no counterpart here.")
    length = folder / "sentence_bert_config.json"
    if length.exists():
        saved["max_length"] = json.loads(length.read_text()).get("max_seq_length")
    settings = folder / "config_sentence_transformers.json"
    if settings.exists():
        said = json.loads(settings.read_text())
        ours = {"passage": "document"}  # where the names differ
        node["prompts"] = {ours.get(name, name): prompt for name, prompt in (said.get("prompts") or {}).items()}
        default = said.get("default_prompt_name")
        if default is not None:
            node["default_prompt"] = ours.get(default, default)
            if node["default_prompt"] not in node["prompts"]:
                raise UsageError(f"{settings}: default_prompt_name={default} is none of its prompts.")
    return saved


def _dense(place: Path) -> dict[str, Tensor]:
    if (place / "model.safetensors").exists():
        return load_file(place / "model.safetensors")
    return torch.load(place / "pytorch_model.bin", map_location="cpu", weights_only=True)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
