"""Names for texts and for a retrieval set's content, by which two evaluations know whether they searched the same."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from unitsphere.types import RetrievalSet


def fingerprint(of: RetrievalSet) -> str:
    """SHA-256 over queries, documents and judgments, in the order of their ids."""
    digest = hashlib.sha256()
    for part in (of.queries, of.corpus, of.qrels):
        for key, value in sorted(part.items()):
            digest.update(repr((key, sorted(value.items()) if isinstance(value, Mapping) else value)).encode())
    return digest.hexdigest()


def hashes(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text's hash, as int64, so that equal texts are equal in every batch, rank and run.

    Among 5 million texts two different ones are equal with a probability of 1e-6.
    """
    found = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.fromiter(found, dtype="S8").view(np.int64)
