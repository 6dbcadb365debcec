"""A folder of `unitsphere encode`, where a verb reads the vectors of documents instead of computing them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitsphere.formats.on_disk import Column
    from unitsphere.search.shards import Shards


def opened(vectors: str | None) -> "Shards | None":
    """
    Raises:
        UsageError: There are no vectors.
    """
    from unitsphere.search.shards import Shards

    return Shards(Path(vectors).expanduser()) if vectors is not None else None


def documents(corpus: str, of: "Shards | None") -> "tuple[Column, Column]":
    """Ids and texts of a corpus, out of the columns that the vectors were made of.

    Raises:
        UsageError: See `on_disk.documents`.
    """
    from unitsphere.formats import on_disk

    return on_disk.documents(corpus, **(of.about["columns"] if of is not None else {}))


def content(corpus: str, texts: Sequence[str], ids: Sequence[str] | None = None) -> dict[str, Any]:
    """What a manifest says of documents; all of them are read."""
    from unitsphere.data.rows import fingerprint

    said = {"corpus": corpus, "documents": len(texts), "texts": fingerprint(texts)}
    return said if ids is None else said | {"ids": fingerprint(ids)}
