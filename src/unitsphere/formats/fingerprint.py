"""A name for a retrieval set's content, by which two evaluations know whether they searched the same."""

import hashlib
from collections.abc import Mapping

from unitsphere.types import RetrievalSet


def fingerprint(of: RetrievalSet) -> str:
    """SHA-256 over queries, documents and judgments, in the order of their ids."""
    digest = hashlib.sha256()
    for part in (of.queries, of.corpus, of.qrels):
        for key, value in sorted(part.items()):
            digest.update(repr((key, sorted(value.items()) if isinstance(value, Mapping) else value)).encode())
    return digest.hexdigest()
