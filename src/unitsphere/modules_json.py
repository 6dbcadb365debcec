"""modules.json and the folders that it names: how sentence-transformers says what its models consist of.

    modules.json                        the order of the modules
    1_Pooling/config.json, 2_Dense/…    their settings and weights
    sentence_bert_config.json           the longest input
    config_sentence_transformers.json   prompts, and how vectors are compared

Code: https://github.com/huggingface/sentence-transformers
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.pooling.cls import CLSMLPPooling

FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
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
MEAN = {"_target_": POOLINGS["mean",]}  # of a model that names no pooling


def ours_alone(embedder: Embedder) -> str | None:
    """What the model has that sentence-transformers or transformers lacks (see `encoders.pruned`); None for nothing."""
    if embedder.windows is not None:
        return "windows"
    if getattr(embedder.encoder.model.config, "pruned", None):
        return "cut heads or feed-forward layers of unequal width"
    return None if _modes(embedder) else type(embedder.pooling).__name__


def write(embedder: Embedder, folder: Path) -> None:
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


def read(folder: Path) -> dict[str, Any]:
    """The config nodes that say what a sentence-transformers folder says.

    Raises:
        UsageError: It says something that has no counterpart here.
    """
    node: dict[str, Any] = {"_target_": "unitsphere.embedder.Embedder", "normalize": False}
    head: dict[str, Tensor] = {}
    saved: dict[str, Any] = {"embedder": node, "head": head}
    for module in json.loads((folder / "modules.json").read_text()):
        kind, place = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        config = json.loads((place / "config.json").read_text()) if (place / "config.json").exists() else {}
        if kind == "Pooling":
            modes = config.get("pooling_mode") or [m for m, flag in FLAGS.items() if config.get(flag)] or "mean"
            modes = (modes,) if isinstance(modes, str) else tuple(modes)
            if modes not in POOLINGS:
                raise UsageError(
                    f"{place}/config.json: pooling {modes} has no counterpart here; known: {list(POOLINGS)}"
                )
            saved["pooling"] = {"_target_": POOLINGS[modes]}
            node["pool_prompt"] = config.get("include_prompt", True)
        elif kind == "Dense" and not node["normalize"]:
            _read_dense(place, config, saved)
        elif kind == "Normalize" and "pooling" in saved and _of_sentences(config):
            node["normalize"] = True
        elif kind != "Transformer":
            raise UsageError(f"{folder}/modules.json: {module['type']} has no counterpart here, or none in this place.")
    bert = next(iter(sorted(folder.glob("sentence_*_config.json"))), folder)  # older ones are called after the network
    said = json.loads(bert.read_text()) if bert.is_file() else {}
    saved["max_length"] = said.get("max_seq_length")
    if others := [key for key in ("query_length", "document_length", "query_expansion") if said.get(key) is not None]:
        raise UsageError(f"{bert}: {others[0]}={said[others[0]]} has no counterpart here.")
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


def _of_sentences(config: Mapping[str, Any]) -> bool:
    """Whether a module reads and writes the vectors of texts, not those of tokens."""
    names = (config.get(f"module_{end}_name") for end in ("input", "output"))
    return all(name in (None, "sentence_embedding") for name in names)


def _read_dense(place: Path, config: Mapping[str, Any], saved: dict[str, Any]) -> None:
    """Add a linear map: a projection, several of which are one, or the MLP on top of the first token.

    Raises:
        UsageError: It is another one.
    """
    node, head, projection = saved["embedder"], saved["head"], "projection.weight"
    after = saved.get("pooling", {}).get("_target_")
    plain = not config.get("use_residual") and _of_sentences(config)
    if plain and after and "Identity" in config["activation_function"] and not config["bias"]:
        weight = _dense(place)["linear.weight"]  # (out, in)
        head[projection] = weight @ head[projection] if projection in head else weight
        node["projection_dim"] = config["out_features"]
    elif plain and after == POOLINGS["cls",] and "Tanh" in config["activation_function"] and projection not in head:
        saved["pooling"] = {"_target_": "unitsphere.pooling.cls.CLSMLPPooling"}
        head.update({f"pooling.dense.{k.removeprefix('linear.')}": v for k, v in _dense(place).items()})
    else:
        raise UsageError(
            f"{place}/config.json: this Dense has no counterpart here. Those without bias, activation and residual "
            "have, and one with tanh right after pooling the first token."
        )


def _modes(embedder: Embedder) -> tuple[str, ...]:
    pooling = embedder.pooling
    return pooling.sentence_transformers or (("cls",) if isinstance(pooling, CLSMLPPooling) else ())


def _dense(place: Path) -> dict[str, Tensor]:
    if (place / "model.safetensors").exists():
        return load_file(place / "model.safetensors")
    return torch.load(place / "pytorch_model.bin", map_location="cpu", weights_only=True)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
