"""A retrieval data set in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv.

Paper: Thakur et al. 2021, BEIR, https://arxiv.org/abs/2104.08663
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records
from unitsphere.types import RetrievalSet

Qrels = dict[str, dict[str, int]]


def find(path: str) -> Path:
    """The folder of that path, or of that name inside `UNITSPHERE_DATA`.

    Raises:
        UsageError: There is none.
    """
    base = paths.data()
    for folder in (Path(path).expanduser(), *([base / path] if base else [])):
        if (folder / "queries.jsonl").exists() or (folder / "queries.jsonl.gz").exists():
            return folder
    where = f"{path!r}" + (f" or in {base}" if base else "; UNITSPHERE_DATA is not set")
    raise UsageError(f"no BEIR data set (corpus.jsonl, queries.jsonl, qrels/) at {where}.")


def read(path: str, split: str) -> RetrievalSet:
    """One split of a BEIR folder, named after the folder.

    Raises:
        UsageError: The folder or the split's judgments are missing, or a file is malformed.
    """
    folder = find(path)
    qrels = judgments(folder)[split]
    if qrels is None:
        raise UsageError(f"{folder}/qrels/{split}.tsv is missing.")
    return retrieval_set(folder.name, read_texts(folder, "corpus"), read_texts(folder, "queries"), qrels)


def judgments(folder: Path) -> dict[str, Qrels | None]:
    """The judgments of train, dev and test; None where there are none.

    Where there is no dev file, dev is the train queries with sha256(id) mod 10 = 0, and train loses them.
    """
    qrels = {split: read_qrels(folder, split) for split in ("train", "dev", "test")}
    train = qrels["train"]
    if qrels["dev"] is None and train is not None:
        held = {q for q in train if int(hashlib.sha256(q.encode()).hexdigest(), 16) % 10 == 0}
        qrels["dev"] = {q: grades for q, grades in train.items() if q in held} or None
        qrels["train"] = {q: grades for q, grades in train.items() if q not in held}
    return qrels


def read_texts(folder: Path, kind: str) -> dict[str, str]:
    """Id -> text of corpus or queries; a document's title stands before its text. A text may be empty.

    Raises:
        UsageError: The file is missing or has no row, a row is malformed, or two rows of one id have different texts.
    """
    file = next((f for f in (folder / f"{kind}.jsonl", folder / f"{kind}.jsonl.gz") if f.exists()), None)
    if file is None:
        raise UsageError(f"{folder}/{kind}.jsonl is missing.")
    texts: dict[str, str] = {}
    for number, record in records(str(file)):
        if isinstance(record, BadRow) or "_id" not in record or "text" not in record:
            raise UsageError(f"{file}, row {number}: an object with _id and text expected, found {record}")
        name, text = str(record["_id"]), f"{record.get('title') or ''} {record['text'] or ''}".strip()
        if texts.setdefault(name, text) != text:
            raise UsageError(
                f"{file}, row {number}: the id {name!r} has another text in an earlier row; ids are unique."
            )
    if not texts:
        raise UsageError(f"{file}: it has no row.")
    return texts


def read_qrels(folder: Path, split: str) -> Qrels | None:
    """Query id -> document id -> grade; None where the split has no file.

    Raises:
        UsageError: A row is malformed, or two rows of one query and document have different grades.
    """
    file = folder / "qrels" / f"{split}.tsv"
    if not file.exists():
        return None
    qrels: Qrels = {}
    for number, record in records(str(file)):
        try:
            if isinstance(record, BadRow):
                raise record
            query, document, grade = record["query-id"], record["corpus-id"], int(record["score"])
        except (BadRow, KeyError, ValueError) as error:
            raise UsageError(f"{file}, row {number}: query-id, corpus-id, score expected ({error}).") from None
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise UsageError(
                f"{file}, row {number}: query {query} and document {document} have grade {grade} here and "
                f"{qrels[query][document]} in an earlier row."
            )
    return qrels


def retrieval_set(
    name: str, corpus: dict[str, str], queries: dict[str, str], qrels: Qrels, max_length: int | None = None
) -> RetrievalSet:
    """The queries that have at least one relevant document, against the whole corpus; the set counts the others.

    Raises:
        UsageError: A judgment names a query or document that is not there, or no query is left.
    """
    for q, grades in qrels.items():
        unknown = [f"query {q}"] * (q not in queries) + [f"document {d}" for d in grades if d not in corpus]
        if unknown:
            raise UsageError(f"{name}: the judgments name {unknown[0]}, which is not in the data.")
    asked = {q: grades for q, grades in qrels.items() if any(grade >= 1 for grade in grades.values())}
    if not asked:
        raise UsageError(f"{name}: no query has a relevant document.")
    left_out = len(qrels) - len(asked)
    return RetrievalSet(name, corpus, {q: queries[q] for q in asked}, asked, max_length, unanswerable=left_out)


def write(folder: Path, sets: Mapping[str, RetrievalSet]) -> None:
    """Retrieval sets as the splits of one BEIR folder, which is made; an id is the same text in all. Titles are part of
    the texts."""
    (folder / "qrels").mkdir(parents=True)
    texts: dict[str, dict[str, str]] = {"corpus": {}, "queries": {}}
    for of in sets.values():
        texts["corpus"] |= of.corpus
        texts["queries"] |= of.queries
    for kind, of_kind in texts.items():
        rows = (json.dumps({"_id": i, "text": text}, ensure_ascii=False) for i, text in of_kind.items())
        (folder / f"{kind}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    for split, of in sets.items():
        graded = "".join(f"{q}\t{d}\t{grade}\n" for q, grades in of.qrels.items() for d, grade in grades.items())
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + graded, encoding="utf-8")
