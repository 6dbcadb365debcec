"""A trained model's card: model/README.md, with the metadata that a hub reads.

Format: https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from omegaconf import DictConfig, OmegaConf

from unitsphere import paths
from unitsphere.encoders import minilm
from unitsphere.encoders.cross_encoder import scores_pairs
from unitsphere.report.table import compared, shown
from unitsphere.runs import Run

TASKS = {  # an evaluator's kind, as its protocol says it -> the hub's name of the task; of the others it has none
    "sts": "sentence-similarity",
    "retrieval": "text-retrieval",
    "classification": "text-classification",
    "pair classification": "text-classification",
}
INHERITED = ("license", "license_name", "license_link", "language", "base_model")


def card(run: Run, title: str | None = None, address: str | None = None, **metadata: str) -> str:
    """The card's text: front matter, then data, objective, scores with their protocol, and how to load the model.

    Args:
        run: A run that has its model.
        title: The model's name; by default that of the run.
        address: From which the code on the card loads it; by default the title, and without one the run's folder.
        metadata: Of the front matter, e.g. license; replaces what the base model says.
    """
    config, info, metrics = run.config, run.info, run.metrics
    model = run.folder / "model"
    name, address = title or str(info["name"]), address or title or str(model)
    inherited = base(config)
    if "license" in metadata:  # license_name and license_link belong to the licence that is replaced
        inherited = {key: value for key, value in inherited.items() if not key.startswith("license")}
    known: dict[str, Any] = inherited | metadata
    cross = scores_pairs(model)
    in_st = cross or (model / "modules.json").exists()
    kinds = ["cross-encoder", "reranker"] if cross else ["sentence-similarity", "feature-extraction"]
    pipeline = "text-ranking" if cross else "sentence-similarity" if in_st else "feature-extraction"
    data = ModelCardData(
        library_name="sentence-transformers" if in_st else "transformers",
        pipeline_tag=pipeline,
        tags=(["sentence-transformers"] if in_st else []) + [*kinds, "unitsphere", f"loss:{info['choices']['loss']}"],
        model_name=name,
        eval_results=list(results(metrics, info.get("protocol", {}))) or None,
        **known,
    )
    protocol = yaml.safe_dump(info.get("protocol", {}), sort_keys=False, default_flow_style=None, width=110)
    prompts = {role: prompt for role, prompt in info["embedder"]["prompts"].items() if prompt}
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        introduction(config, info, known, cross),
        f"## Use\n\n{usage_of_pairs(address) if cross else usage(address, prompts, in_st)}",
        f"## Data\n\n{of_data(config, info)}",
        f"## Objective\n\n{objective(config)}\n\n{training(config, info)}",
        f"## Scores\n\n{scores(metrics, info)}\n\nHow they were measured:\n\n```yaml\n{protocol}```",
        f"## Provenance\n\n{provenance(info)}",
    ]
    return "\n\n".join(parts) + "\n"


def base(config: DictConfig) -> dict[str, Any]:
    """What the card of the model that training began from says of licence, language and its own base.

    Empty where the encoder began from nothing, or from a model without a card.
    """
    path = config.init or config.encoder.get("path")
    if path is None and config.encoder._target_.endswith("minilm"):
        return _said(minilm.folder() / "README.md") | {"base_model": minilm.NAME}
    if path is None:
        return {}
    folder = paths.model(path)
    if folder is not None:
        return _said(folder / "README.md")
    try:
        return _said(Path(hf_hub_download(path, "README.md"))) | {"base_model": path}
    except (OSError, ValueError):
        return {"base_model": path}


def _said(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    data = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return {key: data[key] for key in INHERITED if key in data}


def results(metrics: Mapping[str, float], protocol: Mapping[str, Mapping[str, Any]]) -> Iterator[EvalResult]:
    """The test metrics, as a hub's leaderboards read them; raw values, mostly shares of 1.

    Args:
        metrics: `stage/task/measure` -> value.
        protocol: Task -> how it was measured; its `kind` says what the task is.
    """
    for key, value in metrics.items():
        stage, _, name = key.partition("/")
        task, _, measure = name.rpartition("/")
        kind = protocol.get(task, {}).get("kind")
        if stage != "test" or kind not in TASKS:
            continue
        dataset, metric = (measure, "spearman") if kind == "sts" else (task, measure)
        yield EvalResult(
            task_type=TASKS[kind],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )


def introduction(config: DictConfig, info: Mapping[str, Any], known: Mapping[str, Any], cross: bool) -> str:
    """What the model is, in a few lines."""
    path = config.init or config.encoder.get("path")
    origin = known.get("base_model") or (Path(path).name if path else None)
    licence = known.get("license_name") or known.get("license")
    choices, embedder = info["choices"], info["embedder"]
    kind = "A cross-encoder, which scores pairs of texts and embeds none" if cross else "A text-embedding model"
    return (
        f"{kind}: {info['parameters']:,} parameters, {'' if cross else embedder['pooling'] + ', '}"
        + _reads(embedder)
        + (f"trained from {origin}" if origin else f"begun as encoder={choices['encoder']}")
        + f" with the objective `{choices['loss']}` by unitsphere.\n\n"
        + (f"Licence: {licence}." if licence else "No licence is stated: its base has none here.")
    )


def _reads(embedder: Mapping[str, Any]) -> str:
    windows = embedder.get("windows")
    if windows is None:
        return f"{embedder['max_length']} tokens at most; "
    kind, size, overlap = (windows[key] for key in ("kind", "size", "overlap"))
    return f"texts of any length, read in windows of {size} tokens that share {overlap} ({kind}); "


def usage(address: str, prompts: Mapping[str, str], in_st: bool) -> str:
    """How to load it, with a prompt where it has one."""
    role = "query" if "query" in prompts else next(iter(prompts), None)

    def code(load: str, name: str, key: str) -> str:
        asked = f', {key}="{role}"' if role else ""
        return (
            f'```python\n{load}\n\nmodel = {name}("{address}")\nvectors = model.encode(["sort an array"]{asked})\n```'
        )

    there = code("from sentence_transformers import SentenceTransformer", "SentenceTransformer", "prompt_name")
    lines = [
        there if in_st else "sentence-transformers lacks a part of it; unitsphere loads it:",
        code("from unitsphere import artefact", "artefact.load", "role"),
    ]
    if prompts:
        lines.append("Prompts: " + "; ".join(f"{role}: `{prompt}`" for role, prompt in prompts.items()))
    return "\n\n".join(lines)


def usage_of_pairs(address: str) -> str:
    """How to load a cross-encoder."""
    pairs = '[("sort an array", "Return a sorted copy of an array.")]'
    return (
        "It reranks what a search has found: the higher the score (a logit), the better a text fits the query.\n\n"
        f"```python\nfrom sentence_transformers import CrossEncoder\n\n"
        f'scores = CrossEncoder("{address}").predict({pairs})\n```\n\n'
        "`unitsphere.encoders.cross_encoder.CrossEncoder` gives the same numbers."
    )


def of_data(config: DictConfig, info: Mapping[str, Any]) -> str:
    """What it was trained on and chosen by: numbers and fingerprints; of local files the name alone."""
    path = config.data.get("path")
    lines = [info["data"]["name"] + (f" ({Path(str(path)).name})" if path else "") + "\n"]
    for split, node in info["data"].items():
        if isinstance(node, Mapping):
            lines.append(f"- {split}: " + ", ".join(f"{key} {value}" for key, value in node.items()))
    return "\n".join(lines)


def objective(config: DictConfig) -> str:
    """The loss and the optimiser as YAML; of a local path only the name, since a card may go to others."""

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    nodes = {key: shortened(OmegaConf.to_container(config[key])) for key in ("loss", "optim")}
    return f"```yaml\n{yaml.safe_dump(nodes, sort_keys=False)}```"


def training(config: DictConfig, info: Mapping[str, Any]) -> str:
    """Steps, batch and what chose the checkpoint."""
    chosen = info["selected"]
    by = f"{chosen['metric']} ({shown(chosen['metric'], chosen['value'])})" if chosen.get("value") is not None else ""
    kept = (
        f"the checkpoint of step {info['best_step']}, chosen by {by} out of {len(info['looks'])}" if by else "the last"
    )
    steps = f"{info['steps']} steps of {config.data.batch_size} rows, {config.data.max_length} tokens a text"
    return f"{steps}, seed {info['seed']}; the checkpoint is {kept}."


def scores(metrics: Mapping[str, float], info: Mapping[str, Any]) -> str:
    """Before and after, on test."""
    rows = [
        f"| {name} | {shown(name, before)} | {shown(name, best)} | {shown(name, gain, '+')} |"
        for name, before, best, gain, _ in compared(metrics)
        if best is not None
    ]
    if not rows:
        return "Not measured."
    heading = "| on test, x 100 but for geometry | before | this model | difference |\n|---|---:|---:|---:|\n"
    return heading + "\n".join(rows)


def provenance(info: Mapping[str, Any]) -> str:
    """When, where and with what."""
    git = info.get("git") or {}
    commit = str(git.get("commit") or "no commit")[:12] + (", with uncommitted changes" if git.get("dirty") else "")
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items() if version)
    machine = f"{info['started'][:10]}, {info['processor']}, {info['device']}"
    return f"{machine}; commit {commit}; Python {info['python']}, {versions}."
