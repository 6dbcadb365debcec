"""Queries and pairs on which a model once failed, scored as an evaluation of their own: a regression test.

Such a set was chosen by what one model got wrong, so any other model, and the same one trained anew, scores better
there by chance (regression to the mean). It says whether something was repaired, not which model is better.
"""

from pathlib import Path
from typing import Any

from unitsphere.errors import UsageError
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.score import finished, joined
from unitsphere.evaluation.sts import STS
from unitsphere.evaluation.suffixed import suffixed
from unitsphere.types import Embed, Held, Result, RetrievalSet

ENDING = "_bad"


class BadCases:
    """Scores the sets that `unitsphere compare A B save=FOLDER` has kept, on test only; dev has none of them.

    A task `scifact` is reported as `scifact_bad`, so that it may stand beside the whole one: `scifact_bad/mrr@10`,
    `sts_bad/stsb`.

    Args:
        split: "dev" or "test".
        own: Not used; every evaluator is offered the run's own queries.
        path: The folder: BEIR folders for retrieval, `<task>-<name>.jsonl` for scored pairs.
        max_length: Tokens kept; None is the encoder's limit.
        ignore_identical_ids: As for `Retrieval`.

    Raises:
        UsageError: The folder has no such sets.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        path: str = "bad_cases",
        max_length: int | None = None,
        ignore_identical_ids: bool = False,
    ):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UsageError(f"eval.bad_cases.path={path} is no folder; unitsphere compare A B save=FOLDER makes one.")
        self.evaluators: list[Any] = []
        if split == "dev":
            return
        sets = sorted(file.parent for file in folder.glob("*/queries.jsonl"))
        self.evaluators += [
            Retrieval("test", path=str(one), max_length=max_length, ignore_identical_ids=ignore_identical_ids)
            for one in sets
        ]
        pairs = {file.stem.removeprefix("sts-"): file.name for file in sorted(folder.glob("*-*.jsonl"))}
        if pairs:
            self.evaluators.append(STS("test", pairs, {"bad": {}}, {}, "bad", str(folder), max_length))
        if not self.evaluators:
            raise UsageError(f"eval.bad_cases.path={path} has neither BEIR folders nor <task>-<name>.jsonl.")

    def __call__(self, embed: Embed) -> Result:
        return suffixed(joined([finished(evaluator, embed) for evaluator in self.evaluators]), ENDING)

    def held(self) -> Held:
        """What its sets hold."""
        held = [evaluator.held() for evaluator in self.evaluators]
        return {f"{name}{ENDING}": texts for of_one in held for name, texts in of_one.items()}
