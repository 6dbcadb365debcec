"""The documentation of the installed Python packages: a real domain corpus that every machine already has.

A docstring's summary line is the query, the rest of it the document. Dev and test are packages never trained on. The
corpus is built once (about half a minute) from the packages on this machine, and cached under their versions.
"""

import importlib.metadata
import json
import multiprocessing
import os
import platform
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from unitsphere import paths
from unitsphere.data import harvest
from unitsphere.data.rows import Data, Rows, Splits, fingerprint
from unitsphere.errors import UsageError
from unitsphere.types import RetrievalSet

TRAIN = ("numpy", "scipy", "pandas", "matplotlib", "sympy", "torch", "transformers", harvest.STDLIB)
DEV = ("sklearn",)
TEST = ("networkx",)
DISTRIBUTION = {"sklearn": "scikit-learn"}
SOURCE_COLUMNS = ("summary", "document", "module")


class Docstrings(Data):
    """Query: summary line; document: the rest; label: the module (`scipy.stats`, `json`).

    Args:
        columns: Column that a loss reads -> `summary`, `document` or `module`.
        dev_queries: Dev is this many queries of its packages (those whose SHA-256 is smallest) and their documents,
            since it is scored several times a run. Test is all of its packages.
        name, batch_size, max_length, eval_max_length: As for every data set.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        name: str = "docstrings",
        batch_size: int = 64,
        max_length: int = 64,
        eval_max_length: int | None = 64,
        dev_queries: int = 500,
    ):
        super().__init__(name, columns, batch_size, max_length, eval_max_length)
        self.dev_queries = dev_queries
        wrong = [source for source in columns.values() if source not in SOURCE_COLUMNS]
        if wrong:
            raise UsageError(f"data.columns: docstrings have no column {wrong[0]!r}; {', '.join(SOURCE_COLUMNS)} fit.")

    def load(self) -> Splits:
        table = build_corpus()
        train = table[table.package.isin(TRAIN)]
        rows = Rows(**{column: train[source].tolist() for column, source in self.columns.items()})
        dev, test = (table[table.package.isin(packages)] for packages in (DEV, TEST))
        sample = sorted(set(dev.summary), key=lambda text: fingerprint([text]))[: self.dev_queries]
        return Splits(rows, self._retrieval(dev[dev.summary.isin(sample)]), self._retrieval(test))

    def _retrieval(self, table: pd.DataFrame) -> RetrievalSet:
        pairs = Rows(anchor=table.summary.tolist(), positive=table.document.tolist())
        return pairs.retrieval(self.name, self.eval_max_length)


def labelled(split: str, min_rows: int) -> pd.DataFrame:
    """The summary lines of a split's packages with their modules: columns text and label.

    Args:
        split: "dev" or "test".
        min_rows: Modules that have fewer are left out.
    """
    table = build_corpus()
    held = table[table.package.isin(DEV if split == "dev" else TEST)]
    texts = pd.DataFrame({"text": held.summary, "label": held.module}).drop_duplicates("text", ignore_index=True)
    return texts[texts.groupby("label").label.transform("size") >= min_rows].reset_index(drop=True)


def build_corpus() -> pd.DataFrame:
    """The corpus as a table (package, module, summary, document), unique pairs, out of the cache where it is there."""
    packages = (*TRAIN, *DEV, *TEST)
    versions = {p: _version(p) for p in packages}
    source = Path(harvest.__file__).read_text(encoding="utf-8")
    file = paths.cache() / "docstrings" / f"{fingerprint([json.dumps(versions), source])[:16]}.parquet"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        table = pd.DataFrame(_harvest(packages), columns=["package", "module", "summary", "document"])
        table = table.drop_duplicates(["summary", "document"], ignore_index=True)
        part = file.with_suffix(f".{os.getpid()}")
        table.to_parquet(part)
        part.replace(file)
    return pd.read_parquet(file)


def _version(package: str) -> str:
    if package == harvest.STDLIB:
        return ".".join(platform.python_version_tuple()[:2])
    return importlib.metadata.version(DISTRIBUTION.get(package, package))


def _harvest(packages: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    work = [(package, file) for package in packages for file in harvest.files(package)]
    # Processes are spawned: this one may already hold threads.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(harvest.docstrings, [file for _, file in work], chunksize=64))
    return [
        (package, _module(package, file), summary, document)
        for (package, file), pairs in zip(work, found, strict=True)
        for summary, document in pairs
    ]


def _module(package: str, file: str) -> str:
    """`scipy.stats` for a file in scipy/stats; the top-level module for the standard library."""
    head = Path(file).relative_to(harvest.root(package)).parts[0].removesuffix(".py")
    return head if package == harvest.STDLIB else package if head == "__init__" else f"{package}.{head}"
