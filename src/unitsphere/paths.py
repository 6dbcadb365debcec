"""Where the configuration, the cache and the data sets are."""

import os
from pathlib import Path

from unitsphere.errors import UsageError


def conf() -> Path:
    """The configuration folder: the checkout's if this is one, else the copy inside the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").exists() else package / "conf"


def cache() -> Path:
    """`UNITSPHERE_CACHE`, by default `unitsphere` in the user's cache folder. Safe to delete at any time."""
    base = os.environ.get("UNITSPHERE_CACHE")
    folder = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unitsphere"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data() -> Path | None:
    """`UNITSPHERE_DATA`, a folder with one sub-folder a data set; None where it is not set.

    Raises:
        UsageError: The variable names something that is not a folder.
    """
    value = os.environ.get("UNITSPHERE_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UsageError(f"UNITSPHERE_DATA is {value!r}, which is not a folder.")
    return folder


def model(path: str | Path) -> Path | None:
    """The folder that holds the model files of a run folder or of a model folder; None where `path` is no folder."""
    folder = Path(path).expanduser()
    if any((folder / "model" / file).exists() for file in ("config.json", "unitsphere.yaml")):
        return folder / "model"
    return folder if folder.is_dir() else None
