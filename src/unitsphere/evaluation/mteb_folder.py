"""Data sets in mteb's layout in local folders, as tasks of the mteb package. Importing this module imports mteb.

    corpus.jsonl, queries.jsonl, qrels/test.tsv             Retrieval (BEIR's layout, which is mteb's)
    test.jsonl: sentence1, sentence2, score                 STS
                sentence1, sentence2, label                 PairClassification (1: they belong together)
                sentence1, sentence2                        BitextMining
                text, label; and train.jsonl                Classification
                text, label                                 Clustering

Files may be csv, tsv, jsonl or parquet, gzipped or not; mteb's column names `labels` and `sentences` are read too. A
file `task.yaml` beside them may say `type`, `languages`, `main_score`, `prompt`, and of retrieval
`ignore_identical_ids: true`: mteb then leaves a document with the query's own id out (it is part of the revision).

Paper: Muennighoff et al. 2023, MTEB, https://arxiv.org/abs/2210.07316
Code: https://github.com/embeddings-benchmark/mteb, abstasks/, which computes everything here.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, cast

import yaml
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata, TaskType

from unitsphere.errors import UsageError
from unitsphere.formats import beir
from unitsphere.formats.records import SUFFIXES, BadRow, records

# type -> mteb's class, its main score, the columns that its files have
TYPES: dict[str, tuple[type[AbsTask], str, tuple[str, ...]]] = {
    "Retrieval": (AbsTaskRetrieval, "ndcg_at_10", ()),
    "STS": (AbsTaskSTS, "cosine_spearman", ("sentence1", "sentence2", "score")),
    "PairClassification": (AbsTaskPairClassification, "max_ap", ("sentence1", "sentence2", "label")),
    "BitextMining": (AbsTaskBitextMining, "f1", ("sentence1", "sentence2")),
    "Classification": (AbsTaskClassification, "accuracy", ("text", "label")),
    "Clustering": (AbsTaskClustering, "v_measure", ("text", "label")),
}
SAID = ("type", "languages", "main_score", "prompt", "ignore_identical_ids")  # what task.yaml may hold
READ_AS = {"labels": "label", "sentences": "text"}
SETTINGS: dict[
    str, dict[str, Any]
] = {  # mteb's classes name columns in their own ways, and cluster a share of the texts
    "PairClassification": {"label_column_name": "label"},
    "Clustering": {
        "input_column_name": "text",
        "label_column_name": "label",
        "max_fraction_of_documents_to_embed": None,
    },
}


def tasks(path: str, split: str) -> list[AbsTask]:
    """The tasks of a folder that is a data set or holds data sets, with their data, where they have the split.

    Raises:
        UsageError: There is no such folder or no data set in it, or one is malformed.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(f"eval.mteb.path={path}: no such folder.")
    inside = (f for f in sorted(folder.iterdir()) if f.is_dir())
    data_sets = [f for f in ([folder] if _splits(folder) else inside) if _splits(f)]
    if not data_sets:
        raise UsageError(
            f"eval.mteb.path={path}: no data set in mteb's layout, neither there nor in its folders "
            "(corpus.jsonl, queries.jsonl and qrels/test.tsv; or test.jsonl)."
        )
    return [_task(f, split) for f in data_sets if split in _splits(f)]


def _splits(folder: Path) -> set[str]:
    if (folder / "qrels").is_dir():
        return {split for split, grades in beir.judgments(folder).items() if grades}
    return {split for split in ("train", "dev", "test") if _file(folder, split) is not None}


def _file(folder: Path, split: str) -> Path | None:
    names = (split, "validation") if split == "dev" else (split,)
    files = [f for name in names for f in sorted(folder.glob(f"{name}.*"))]
    return next((f for f in files if f.name.removesuffix(".gz").endswith(SUFFIXES)), None)


def _task(folder: Path, split: str) -> AbsTask:
    """A task whose data is loaded.

    Raises:
        UsageError: The files have not the columns of the type, or of any; a row is malformed.
    """
    file = folder / "task.yaml"
    said = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not isinstance(said, dict) or said.keys() - {*SAID}:
        raise UsageError(f"{file}: {', '.join(SAID)} would fit, found {said}")
    ignore = said.get("ignore_identical_ids", False)
    if not isinstance(ignore, bool):
        raise UsageError(f"{file}: ignore_identical_ids={ignore}; true or false would fit.")
    if (folder / "qrels").is_dir():
        kind, data = "Retrieval", _retrieval(folder, split)
    else:
        if ignore:
            raise UsageError(f"{file}: ignore_identical_ids goes with retrieval, which has queries and a corpus.")
        rows = {name: _rows(f) for name in ("train", split) if (f := _file(folder, name)) is not None}
        kind = said.get("type") or _type(folder, rows[split][0], "train" in rows)
        if kind not in TYPES:
            raise UsageError(f"{file}: type={kind}; {', '.join(TYPES)} would fit.")
        wanted = [split, "train"] if kind == "Classification" else [split]
        data = _columns({name: rows[name] for name in wanted if name in rows}, TYPES[kind][2], folder)
    base, main_score, _ = TYPES[kind]
    metadata = TaskMetadata(
        name=folder.resolve().name,
        type=cast(TaskType, kind),
        description=f"local data in {folder.name}",
        dataset={"path": str(folder.resolve()), "revision": _digest(folder)},
        eval_splits=[split],
        eval_langs=said.get("languages") or ["und-Zyyy"],
        main_score=said.get("main_score") or main_score,
        prompt=said.get("prompt"),
    )
    more = {"ignore_identical_ids": True} if ignore else {}
    loaded = {"metadata": metadata, "dataset": data, "data_loaded": True, "load_data": lambda self, **_: None}
    return type("Local", (base,), loaded | more | SETTINGS.get(kind, {}))()


def _type(folder: Path, row: Mapping[str, Any], train: bool) -> str:
    fitting = [kind for kind, (_, _, columns) in TYPES.items() if columns and set(columns) <= row.keys()]
    if not fitting:
        raise UsageError(f"{folder}: no type of task has the columns {', '.join(row)}; {_known()} would fit.")
    best = max(fitting, key=lambda kind: len(TYPES[kind][2]))
    return "Clustering" if best == "Classification" and not train else best


def _known() -> str:
    return "; ".join(f"{', '.join(columns)} ({kind})" for kind, (_, _, columns) in TYPES.items() if columns)


def _rows(file: Path) -> list[dict[str, Any]]:
    """A file's records, with the column names of this module."""
    found = []
    for number, record in records(str(file)):
        if isinstance(record, BadRow):
            raise UsageError(f"{file}, row {number}: {record}")
        found.append({READ_AS.get(key, key): value for key, value in record.items()})
    if not found:
        raise UsageError(f"{file}: no rows.")
    return found


def _columns(rows: Mapping[str, list[dict[str, Any]]], columns: Sequence[str], folder: Path) -> DatasetDict:
    """The columns as mteb's classes read them: labels are numbered in their order, equally in all splits."""
    for split, table in rows.items():
        for number, row in enumerate(table, 1):
            empty = [column for column in columns if row.get(column) is None]
            if empty:
                raise UsageError(f"{folder}, {split}, row {number}: no {empty[0]} in {row}")
            several = [column for column in columns if isinstance(row[column], list | dict)]
            if several:
                raise UsageError(
                    f"{folder}, {split}, row {number}: {several[0]} is one value a line, found {row[several[0]]!r}"
                )
            if "score" in columns and not _is_number(row["score"]):
                raise UsageError(f"{folder}, {split}, row {number}: score is a number, found {row['score']!r}")
    labels = sorted({row["label"] for table in rows.values() for row in table}) if "label" in columns else []
    if "sentence1" in columns and labels and len(labels) != 2:
        raise UsageError(f"{folder}: labels of pairs are 0 and 1, found {', '.join(map(str, labels[:5]))}")
    read: dict[str, Callable[[Any], Any]] = {"score": float, "label": labels.index}
    return DatasetDict(
        {
            split: Dataset.from_dict({c: [read.get(c, str)(row[c]) for row in table] for c in columns})
            for split, table in rows.items()
        }
    )


def _is_number(value: Any) -> bool:
    try:
        return isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _retrieval(folder: Path, split: str) -> dict[str, Any]:
    found = beir.read(str(folder), split)
    documents = {"id": list(found.corpus), "text": list(found.corpus.values()), "title": [""] * len(found.corpus)}
    queries = {"id": list(found.queries), "text": list(found.queries.values())}
    parts = {"corpus": Dataset.from_dict(documents), "queries": Dataset.from_dict(queries)}
    grades = {query: dict(found.qrels[query]) for query in found.queries}
    return {"default": {split: {**parts, "relevant_docs": grades, "top_ranked": None}}}


def _digest(folder: Path) -> str:
    """Of the names and contents of the files: a changed data set is another revision of it."""
    found = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        found.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()
