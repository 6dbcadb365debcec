"""Vectors of texts that were embedded before, as many as fit: the one that was asked for longest ago goes first."""

import sys
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

OVERHEAD = 400  # bytes of the objects around an entry, about


class Key(NamedTuple):
    """All that decides a text's vector: whether it is a query, where that matters (see `unitsphere.coded`), the prompt
    before it, and the text itself."""

    role: str | None
    prompt: str
    text: str


class Embedded(NamedTuple):
    """A text's vector (dim), the tokens that were read of it, and whether it lost its end."""

    vector: np.ndarray
    tokens: int
    cut: bool


class Cache:
    """Least recently used, bounded in bytes.

    Args:
        limit: Bytes of vectors and texts together; 0 keeps nothing.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self.entries: OrderedDict[Key, Embedded] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: Key) -> Embedded | None:
        """The entry, which is now the one asked for last."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Embedded) -> None:
        """Keep a copy, for a row would keep alive the matrix that it is a row of."""
        size = _size(key, entry)
        if key in self.entries or size > self.limit:
            return
        self.entries[key] = entry._replace(vector=entry.vector.copy())
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= _size(*self.entries.popitem(last=False))


def _size(key: Key, entry: Embedded) -> int:
    return sum(map(sys.getsizeof, key)) + entry.vector.nbytes + OVERHEAD
