"""A table of synonyms: a tsv or csv without header, the word in the first column and synonyms in the others; or jsonl
with `word` and a list `synonyms`. A word may have several rows."""

from typing import Any

from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records


def read(path: str) -> dict[str, list[str]]:
    """Word, in lower case -> synonyms.

    Raises:
        UsageError: The file is not there, is empty, or a row is malformed.
    """
    table: dict[str, list[str]] = {}
    for number, record in records(path, header=False):
        try:
            if isinstance(record, BadRow):
                raise record
            entry, found = (record["word"], record["synonyms"]) if "word" in record else _columns(record)
            synonyms = [text.strip() for text in found if text.strip()]
            if not entry.strip() or not synonyms:
                raise ValueError(entry)
        except (BadRow, AttributeError, KeyError, TypeError, ValueError):
            raise UsageError(f"{path}, row {number}: a word and its synonyms expected, found {record}") from None
        table.setdefault(entry.strip().casefold(), []).extend(synonyms)
    if not table:
        raise UsageError(f"{path}: the table is empty.")
    return table


def _columns(record: dict[Any, Any]) -> tuple[str, list[str]]:
    first, *others = record.values()
    return first, others
