"""Run folders as records to compare, read without torch: hundreds a second."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unitsphere.errors import UsageError
from unitsphere.runs import Run

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Record:
    """One run, or one evaluation of a run.

    Attributes:
        folder: Where it is.
        info: Its run.json.
        settings: A group (`loss`) -> the option chosen; a key (`loss.temperature`, `seed`) -> its value.
        metrics: `test/<task>/<measure>` -> value.
    """

    folder: Path
    info: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    def setting(self, key: str) -> str:
        """The value of a group or key, as it is written on the command line; `-` where the run has none."""
        value = self.settings.get(key)
        return "-" if value is None and key not in self.settings else written(value)


def written(value: Any) -> str:
    """A configuration value as it is typed."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def find(paths: Iterable[str | Path]) -> list[Record]:
    """The records in these folders, or anywhere below them, in the order of their names. What a run has made smaller in
    its own folder (`compression=…`) is found where that is named.

    An evaluation of a run has that run's settings, with its own metrics; one of any other model has loss=untrained.

    Raises:
        UsageError: A path is not there, or holds no run.
    """
    found: dict[Path, Record] = {}
    for path in paths:
        top = Path(path).expanduser()
        below = (file for file in sorted(top.rglob("run.json")) if not _of_a_run(file, top))
        files = [top / "run.json"] if (top / "run.json").exists() else list(below)
        if not files:
            raise UsageError(f"{path}: no run is there" + ("" if top.exists() else ", and no such folder") + ".")
        for file in files:
            found[file.parent.resolve()] = read(file.parent)
    return list(found.values())


def _of_a_run(file: Path, top: Path) -> bool:
    """Whether it is of a ladder in a run's folder, both of them below `top`."""
    return any(
        place.name == "compressed" and top in place.parents and (place.parent / "run.json").exists()
        for place in file.parents
    )


def read(folder: Path) -> Record:
    """One run's or evaluation's record."""
    run = Run(folder)
    info, config = run.info, _yaml(folder / "config.yaml")
    trained = _trained(folder, info, config)
    if trained is not None:
        model = read(trained)
        return Record(folder, info | {"looks": []}, model.settings, run.metrics)
    if "choices" not in info:  # an evaluation of a model that is no run
        parts = {k: v for k, v in leaves(config) if k.startswith(("encoder.", "pooling.", "embedder."))}
        name = config.get("model") or parts.get("encoder.path") or parts.get("encoder._target_")
        pooling = {"pooling": parts["pooling._target_"].rpartition(".")[2]} if "pooling._target_" in parts else {}
        untrained = {"model": Path(str(name)).name, "loss": "untrained"}
        return Record(folder, info, parts | pooling | untrained, run.metrics)
    settings = dict(leaves(config)) | {k: v for k, v in info["choices"].items() if v is not None}
    return Record(folder, info, settings, run.metrics)


def _trained(folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> Path | None:
    """The run that an evaluation has scored, where it is one and is still there."""
    if "choices" in info or not config.get("model"):
        return None
    model = Path(str(config["model"])).expanduser()
    return model if (model / "run.json").exists() else None


def _yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    with file.open(encoding="utf-8") as stream:
        return yaml.load(stream, Loader=LOADER) or {}


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted key -> value of a nested mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
