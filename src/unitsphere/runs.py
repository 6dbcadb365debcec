"""A run's folder under outputs/: made exclusively, written atomically, read without torch.

outputs/<name>/s<seed>_<YYYYMMDD-HHMMSS>[-n]/
  config.yaml  overrides.yaml  run.json  metrics.json  metrics.csv  scores/  model/  checkpoints/
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.process import processor

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = (
    "unitsphere", "torch", "transformers", "tokenizers", "pytorch-lightning", "hydra-core", "numpy", "scipy",
    "faiss-cpu", "pytrec-eval-terrier", "datasets",
)  # fmt: skip

HELD: set[Path] = set()  # folders of the runs that this process works on


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: Where.
        writes: Whether this process writes in it; of several ranks only the first does.
    """

    folder: Path
    writes: bool = True

    @classmethod
    def create(cls, parent: Path, stem: str) -> "Run":
        """Make the folder parent/stem, or parent/stem-2, …: one that no other run has, however many start at once."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
                return cls(folder)
            except FileExistsError:
                number += 1

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run.

        Raises:
            UsageError: The path is not a run folder.
        """
        folder = Path(path).expanduser()
        if not (folder / "run.json").exists() or not (folder / "config.yaml").exists():
            raise UsageError(f"{path} is not a run folder: it should hold config.yaml and run.json.")
        return cls(folder)

    @property
    def config(self) -> DictConfig:
        """The resolved configuration.

        Raises:
            UsageError: It has a setting that is no more.
        """
        config = OmegaConf.load(self.folder / "config.yaml")
        assert isinstance(config, DictConfig)
        if config.get("trainer", {}).pop("cache_rows", None) is not None:
            raise UsageError(
                f"{self.folder}: it was run with trainer.cache_rows, texts a pass, which is trainer.cache_tokens now, "
                "tokens a pass: only the version that ran it can run it again"
            )
        return config

    @property
    def info(self) -> dict[str, Any]:
        """run.json; the status of a run that no process works on any more reads `killed`."""
        info: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        if info["status"] == "running" and not self._held():
            info["status"] = "killed"
        if info["status"] == "trained" and self._held():  # by what compresses it
            info["status"] = "running"
        return info

    @property
    def metrics(self) -> dict[str, float]:
        """metrics.json; empty where nothing was scored yet."""
        file = self.folder / "metrics.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @contextmanager
    def lock(self, seconds: float = 1) -> Iterator[None]:
        """Hold the folder while working in it; the system lets go of it however this process ends.

        Args:
            seconds: To wait for it: whoever reads `info` holds it for a moment, too.

        Raises:
            UsageError: Another process holds it.
        """
        if not self.writes:
            yield
            return
        try:
            with FileLock(self.folder / ".lock", timeout=seconds):
                HELD.add(self.folder.resolve())
                try:
                    yield
                finally:
                    HELD.remove(self.folder.resolve())
        except Timeout:
            raise UsageError(f"{self.folder}: another process is working on this run.") from None

    def _held(self) -> bool:
        if self.folder.resolve() in HELD:
            return True
        try:
            with FileLock(self.folder / ".lock", timeout=0.2):
                return False
        except Timeout:
            return True

    def note(self, **values: Any) -> None:
        """Set keys of run.json."""
        if not self.writes:
            return
        file = self.folder / "run.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        write(file, json.dumps(known | values, indent=2, ensure_ascii=False, default=str) + "\n")

    def note_cut(self, where: str, counts: Mapping[tuple[str, int], tuple[int, int]], mend: str) -> None:
        """Note in run.json how many texts were cut, and warn of each place once.

        Args:
            where: train, dev, test, ….
            counts: (which texts, tokens kept) -> number of texts, and how many of them were longer.
            mend: The setting that would keep more.
        """
        if not self.writes:
            return
        known = self.info.get("truncated", {})
        for (which, limit), (texts, cut) in counts.items():
            place = f"{where}, {which}, {limit} tokens"
            if cut and not known.get(place, {}).get("cut"):
                warnings.warn(
                    f"{where}: {cut:,} of {texts:,} texts ({which}) were cut at {limit} tokens. {mend} keeps more, up "
                    "to the encoder's limit; window=uniform reads whole documents.",
                    stacklevel=2,
                )
            known[place] = {"texts": texts, "cut": cut}
        self.note(truncated=known)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add to metrics.json."""
        if not self.writes:
            return
        write(self.folder / "metrics.json", json.dumps(self.metrics | dict(metrics), indent=2) + "\n")

    def add_items(self, stage: str, items: "Mapping[str, pd.DataFrame]") -> None:
        """Write scores/<stage>/<task>.parquet, one row a query or pair."""
        if not self.writes:
            return
        folder = self.folder / "scores" / stage
        folder.mkdir(parents=True, exist_ok=True)
        for task, table in items.items():
            part = folder / f"{task}.parquet.writing"
            table.to_parquet(part)
            part.replace(folder / f"{task}.parquet")


def stamped(stem: str) -> str:
    """`stem_<YYYYMMDD-HHMMSS>`."""
    return f"{stem}_{time.strftime('%Y%m%d-%H%M%S')}"


MODEL_IS_THERE = ("done", "trained")  # statuses; of the latter what should compress it is missing
OF_NO_CELL = ("name", "outputs", "resume", "logger", "vector_cache")  # change nothing that a run finds


def cell(config: DictConfig) -> str:
    """A sweep's name for a configuration: equal for equal runs, whatever they are called and wherever they go."""
    kept = {k: v for k, v in OmegaConf.to_container(config).items() if k not in OF_NO_CELL}  # type: ignore[union-attr]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f"{file.name}.{os.getpid()}.writing")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def provenance() -> dict[str, Any]:
    """Where and with what this process runs."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The checkout's commit, and whether its code or configuration differ from that; None outside a checkout."""
    checkout = paths.conf().parent
    if not (checkout / ".git").exists():
        return None

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *args], capture_output=True, text=True).stdout.strip()

    return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain", "src", "conf"))}
