"""Hard negatives that `unitsphere mine` has found, given to the rows that they were found for.

Papers: Karpukhin et al. 2020, DPR, https://arxiv.org/abs/2004.04906.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records


class Mined:
    """Adds to each row's negatives those of its anchor in a file; a row whose anchor is not there keeps what it has.

    Args:
        path: negatives.jsonl of `unitsphere mine`, or any file with columns `anchor` and `negative` (a list); the
            negatives of several rows with one anchor come together.
        count: At most so many mined ones a row, the first; None is all.

    Raises:
        UsageError: The file is malformed, or has no row's anchor.
    """

    gives: tuple[str, ...] = ("negative",)

    def __init__(self, path: str, count: int | None = None):
        if count is not None and count < 1:
            raise UsageError(f"preparation.mined.count={count}: 1 or more would fit.")
        self.path, self.count = path, count

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        mined: dict[str, list[str]] = {}
        for number, record in records(self.path):
            if isinstance(record, BadRow) or not _fits(record):
                raise UsageError(f"{self.path}, row {number}: anchor and a list negative expected, found {record}")
            texts, how = list(record["negative"]), record.get("mined")
            new = texts if how is None else texts[len(texts) - len(how) :]  # a row's own negatives stand first
            mined[record["anchor"]] = list(dict.fromkeys([*mined.get(record["anchor"], ()), *new]))
        if not mined.keys() & set(rows.anchor):
            raise UsageError(f"{self.path} has negatives for none of the anchors; mine them from the same data.")
        had: Sequence[Sequence[str]] = rows.negative or [[]] * len(rows)
        found = (mined.get(anchor, [])[: self.count] for anchor in rows.anchor)
        more = [[*own, *(text for text in new if text not in own)] for own, new in zip(had, found, strict=True)]
        return replace(rows, negative=more), range(len(rows))


def _fits(record: Mapping[Any, Any]) -> bool:
    return isinstance(record.get("anchor"), str) and isinstance(record.get("negative"), list | tuple)
