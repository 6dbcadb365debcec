"""Mine for 10,000 queries among a million documents of random unit vectors, 384 wide: peak memory and time.

python experiments/mining/million.py exact|ivf|hnsw [documents]
"""

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unitsphere.mining.filters import Margin
from unitsphere.mining.miner import Miner
from unitsphere.mining.sources import Dense
from unitsphere.search.dense import Approximate, Exact, unit

INDICES: dict[str, Any] = {
    "exact": Exact,
    "ivf": lambda: Approximate("IVF{lists},Flat"),
    "hnsw": lambda: Approximate("HNSW32,Flat"),
}


class Numbered(Sequence[str]):
    """Texts that are not kept anywhere."""

    def __init__(self, word: str, count: int):
        self.word, self.count = word, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> str:
        if i >= self.count:
            raise IndexError(i)
        return f"{self.word} {i}"


def embed(texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None) -> np.ndarray:
    """A random vector for each text, a function of its number; a query lies near the document of its number."""
    found = np.empty((len(texts), 384), np.float32)
    for row, text in enumerate(texts):
        found[row] = np.random.default_rng(int(text.split()[1])).standard_normal(384, np.float32)
    noise = 0.5 * np.random.default_rng(len(texts)).standard_normal(found.shape, np.float32) if role == "query" else 0
    return unit(found + noise)


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most"


if __name__ == "__main__":
    name, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    documents, queries = Numbered("document", count), list(Numbered("query", 10_000))
    print(f"{name}, {count:,} documents; before: {peak()}")
    with tempfile.TemporaryDirectory() as folder:
        source = Dense(INDICES[name](), quota=4)
        began = time.monotonic()
        source.attach(documents, embed, Path(folder), None)
        miner = Miner(documents, {"dense": source}, {"margin": Margin()})
        built = time.monotonic()
        mined = miner(queries, [[f"document {i}"] for i in range(len(queries))])
        ended = time.monotonic()
    print(
        f"{sum(map(len, mined)):,} negatives; made and indexed in {built - began:.0f} s, mined in {ended - built:.0f} s"
    )
    print(peak())
