"""Several data sets as one, each with its own instruction: what instruction-tuned embedders are trained on.

Papers: Su et al. 2023, INSTRUCTOR, https://arxiv.org/abs/2212.09741; Wang et al. 2022, E5, https://arxiv.org/abs/2212.03533.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unitsphere.data.rows import COLUMNS, Data, Rows, Splits
from unitsphere.errors import UsageError
from unitsphere.types import RetrievalSet


class Mixture(Data):
    """The rows of all sources, with a column `task` that holds the source's name.

    Dev and test are the first source's. What another holds out is not trained on either, so that it can be scored by
    itself (`data.sources.NAME.held_out=0` trains on it). A column that only some sources have is left out; batches of
    one task (`sampler=task_homogeneous`) keep a task's negatives its own. All rows are in memory.

    Args:
        sources: Task -> data set; their batch size and lengths are not used.
        instructions: Task -> {anchor: text put before its anchors, positive: before its positives and negatives}. A
            task that is not named keeps its rows' own instructions, else it has none.
        columns, name, batch_size, max_length, eval_max_length: As for every data set; `columns` says which are kept.

    Raises:
        UsageError: There are no sources, one leaves its rows on disk, or an instruction names none of them or another
            side.
    """

    def __init__(
        self,
        sources: Mapping[str, Data],
        columns: Mapping[str, Any],
        instructions: Mapping[str, Mapping[str, str]] | None = None,
        name: str = "mixture",
        batch_size: int = 64,
        max_length: int = 64,
        eval_max_length: int | None = None,
    ):
        super().__init__(name, columns, batch_size, max_length, eval_max_length)
        if not sources:
            raise UsageError("data.sources is empty: name data sets, e.g. +data@data.sources.docs=docstrings")
        self.sources, self.instructions = dict(sources), dict(instructions or {})
        unknown = self.instructions.keys() - self.sources.keys()
        sides = {side for given in self.instructions.values() for side in given} - {"anchor", "positive"}
        if sides:
            raise UsageError(f"data.instructions: no side {sorted(sides)[0]!r}; anchor and positive fit.")
        if unknown:
            raise UsageError(f"data.instructions: no source {sorted(unknown)[0]!r}; known: {', '.join(self.sources)}")

    def load(self) -> Splits:
        read = {task: source.splits for task, source in self.sources.items()}
        for task, splits in read.items():
            if splits.train.on_disk:
                raise UsageError(f"data=mixture reads all rows into memory; data.sources.{task}.on_disk=false says so.")
        rows = {task: self._instructed(task, splits.train) for task, splits in read.items()}
        merged: dict[str, list[Any]] = {"task": [task for task, of_task in rows.items() for _ in range(len(of_task))]}
        kept = [*self.columns, "anchor_instruction", "positive_instruction"]
        for column in (c for c in COLUMNS if c in kept):
            values = [getattr(of_task, column) for of_task in rows.values()]
            if all(value is not None for value in values):
                merged[column] = [item for value in values for item in value]
        task, first = next(iter(read.items()))
        dev, test = (self._asked(task, split) for split in (first.dev, first.test))
        return Splits(Rows(**merged), dev, test, sum(splits.skipped for splits in read.values()))

    def _instructed(self, task: str, rows: Rows) -> Rows:
        given = self.instructions.get(task, {})

        def before(column: str) -> list[str | None]:
            own = getattr(rows, f"{column}_instruction")
            return [given[column]] * len(rows) if column in given else list(own or [None] * len(rows))

        return replace(rows, anchor_instruction=before("anchor"), positive_instruction=before("positive"))

    def _asked(self, task: str, split: RetrievalSet | None) -> RetrievalSet | None:
        given = self.instructions.get(task, {})
        if split is None:
            return None
        before = dict(split.instructions)
        for role, texts, column in (("query", split.queries, "anchor"), ("document", split.corpus, "positive")):
            if column in given:
                before |= {(role, text): given[column] for text in texts.values()}
        return replace(split, instructions=before, max_length=self.eval_max_length or split.max_length)
