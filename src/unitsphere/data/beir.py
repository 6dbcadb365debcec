"""Training pairs out of the judgments of a retrieval data set in BEIR's layout.

Paper: Thakur et al. 2021, BEIR, https://arxiv.org/abs/2104.08663
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unitsphere.data.rows import Data, Rows, Splits
from unitsphere.errors import UsageError
from unitsphere.formats.beir import find, judgments, read_texts, retrieval_set


class Beir(Data):
    """Training pairs are (query, relevant document) of the train judgments; dev and test search the whole corpus.

    Where there is no dev judgment file, a tenth of the train queries is dev (see `formats.beir.judgments`).

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
        wrong = [source for source in columns.values() if source not in ("query", "document")]
        if wrong:
            raise UsageError(f"data.columns: judgments have no column {wrong[0]!r}; query and document fit.")
        self.folder = find(path)

    def corpus(self, rows: Rows) -> Sequence[str]:
        """All documents that are not empty, judged or not."""
        return [text for text in read_texts(self.folder, "corpus").values() if text]

    def load(self) -> Splits:
        corpus, queries = read_texts(self.folder, "corpus"), read_texts(self.folder, "queries")
        qrels = judgments(self.folder)
        if qrels["train"] is None:
            raise UsageError(f"{self.folder}/qrels/train.tsv is missing; to score only, use eval.retrieval.path.")
        asked = retrieval_set(self.name, corpus, queries, qrels["train"])
        pairs = [
            {"query": asked.queries[q], "document": corpus[d]}
            for q, grades in asked.qrels.items()
            for d, grade in grades.items()
            if grade >= 1 and asked.queries[q] and corpus[d]
        ]
        columns: dict[str, Any] = {c: [pair[source] for pair in pairs] for c, source in self.columns.items()}
        rows = Rows(**columns)
        dev, test = (
            retrieval_set(self.name, corpus, queries, asked, self.eval_max_length) if asked else None
            for asked in (qrels["dev"], qrels["test"])
        )
        return Splits(rows, dev, test)
