"""Training pairs out of the judgments of a retrieval data set in BEIR's layout.

Paper: Thakur et al. 2021, BEIR, https://arxiv.org/abs/2104.08663
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitsphere.data.rows import Data, Rows, Splits
from unitsphere.errors import UsageError
from unitsphere.formats.beir import find, read_qrels, read_texts, retrieval_set


class Beir(Data):
    """Training pairs are (query, relevant document) of the train judgments; dev and test search the whole corpus.

    Where there is no dev judgment file, dev is the train queries with sha256(id) mod 10 = 0, and train loses them.

    Args:
        path: The folder, or the name of one inside `UNITSPHERE_DATA`.
        columns, name, batch_size, max_length, eval_max_length: As for every data set; the source's columns are
            `query` and `document`. The name is by default the folder's.
    """

    def __init__(
        self,
        path: str | None,
        columns: Mapping[str, Any],
        name: str | None = None,
        batch_size: int = 64,
        max_length: int = 128,
        eval_max_length: int | None = None,
    ):
        if path is None:
            raise UsageError("data.path is not set: a folder in BEIR's layout, e.g. data.path=scifact")
        super().__init__(name or Path(path).name, columns, batch_size, max_length, eval_max_length)
        self.folder = find(path)

    def load(self) -> Splits:
        corpus, queries = read_texts(self.folder, "corpus"), read_texts(self.folder, "queries")
        train, dev, test = (read_qrels(self.folder, split) for split in ("train", "dev", "test"))
        if train is None:
            raise UsageError(f"{self.folder}/qrels/train.tsv is missing; to score only, use eval.retrieval.path.")
        if dev is None:
            dev = {q: grades for q, grades in train.items() if _held_out(q)}
            train = {q: grades for q, grades in train.items() if not _held_out(q)}
        asked = retrieval_set(self.name, corpus, queries, train)
        pairs = [
            {"query": asked.queries[q], "document": corpus[d]}
            for q, grades in asked.qrels.items()
            for d, grade in grades.items()
            if grade >= 1 and asked.queries[q] and corpus[d]
        ]
        columns: dict[str, Any] = {c: [pair[source] for pair in pairs] for c, source in self.columns.items()}
        rows = Rows(**columns)
        dev_set, test_set = (
            retrieval_set(self.name, corpus, queries, qrels, self.eval_max_length) if qrels else None
            for qrels in (dev, test)
        )
        return Splits(rows, dev_set, test_set)


def _held_out(query_id: str) -> bool:
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % 10 == 0
