"""Semantic textual similarity: the seven tasks of the SimCSE table.

Papers: Agirre et al. 2012-2016, Cer et al. 2017 (STS-B), https://arxiv.org/abs/1708.00055; Marelli et al. 2014 (SICK);
protocol of Gao et al. 2021, SimCSE, https://arxiv.org/abs/2104.08821 (appendix B).
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.formats.records import BadRow, records
from unitsphere.search.dense import unit
from unitsphere.types import Embed, Held, Result, RetrievalSet


class STS:
    """Spearman's rho between cosine and gold score over all pairs of a task ("all" aggregation), and their mean.

    Both sentences are embedded in the role "symmetric", with the query's prompt: neither asks for the other. Of a model
    whose vectors are stored in a code, both are what their codes say.

    `dev` scores the one task that chooses a checkpoint; `test` the tasks that report. When the time is over, the tasks
    that are finished are reported, without their mean.

    Args:
        split: "dev" or "test".
        tests: Task -> file inside `path`.
        dev: Task -> file, for the two selection protocols: `simcse` chooses by STS-B dev, as the paper does (1,129 of
            its 1,496 pairs are in STS12-16); `clean` by SICK trial.
        protocol: Which of the two.
        path: A folder laid out as the files say; None is `UNITSPHERE_DATA`, and without that the hub.
        hub: File -> data set and split on the hub, where there is no folder, in columns sentence1, sentence2, score.
            (MTEB's SICK-R has 9,927 rows, the paper's test 4,927: that task differs. The protocol has the rows.)
        max_length: Tokens kept; None is the encoder's limit. The paper does not cut.
        own: Not used; every evaluator is offered the run's own queries.

    Raises:
        UsageError: A file is missing or malformed, or the protocol has no such name.
    """

    def __init__(
        self,
        split: str,
        tests: Mapping[str, str],
        dev: Mapping[str, Mapping[str, str]],
        hub: Mapping[str, str],
        protocol: str = "simcse",
        path: str | None = None,
        max_length: int | None = None,
        own: RetrievalSet | None = None,
    ):
        if protocol not in dev:
            raise UsageError(f"eval.sts.protocol={protocol}: {' or '.join(dev)} would fit.")
        folder = Path(path).expanduser() if path else paths.data()
        files = tests if split == "test" else dev[protocol]
        self.tasks = {task: read(task, folder, file, hub) for task, file in files.items()}
        self.protocol = protocol
        self.max_length = max_length

    def held(self) -> Held:
        """The two sentences of each pair, together: a training row that has both would give their score away."""
        return {
            f"sts/{task}": list(zip(pairs.sentence1, pairs.sentence2, strict=True))
            for task, pairs in self.tasks.items()
        }

    def __call__(self, embed: Embed) -> Result:
        items: dict[str, pd.DataFrame] = {}
        for task, pairs in self.tasks.items():
            try:
                a, b = (
                    unit(embed(pairs[s].tolist(), "symmetric", self.max_length)) for s in ("sentence1", "sentence2")
                )
            except OutOfTime:
                if not items:
                    raise
                break
            items[task] = pairs.assign(prediction=(a * b).sum(axis=1))
        metrics = {
            f"sts/{task}": float(spearmanr(pairs.prediction, pairs.score).statistic) for task, pairs in items.items()
        }
        whole = len(items) == len(self.tasks)
        if whole and len(metrics) > 1:
            metrics["sts/avg"] = sum(metrics.values()) / len(metrics)
        stamp = {
            "kind": "sts",
            "aggregation": "all",
            "measure": "spearman of cosine",
            "selection": self.protocol,
            "max_length": self.max_length,
            "pairs": {task: len(pairs) for task, pairs in items.items()},
        } | ({} if whole else {"stopped": f"{len(items)} of {len(self.tasks)} tasks"})
        return Result(
            metrics, list(metrics)[-1], {f"sts-{task}": pairs for task, pairs in items.items()}, {"sts": stamp}
        )


def read(task: str, folder: Path | None, file: str, hub: Mapping[str, str]) -> pd.DataFrame:
    """One task as columns sentence1, sentence2, score.

    Raises:
        UsageError: Neither the folder nor the hub has it, or a row is malformed.
    """
    source = str(folder / file) if folder is not None else hub.get(file, file)
    rows, number = [], 0
    try:
        for at, record in records(source):
            number = at
            if isinstance(record, BadRow):
                raise record
            score = float(record["score"])
            if not isfinite(score):
                raise ValueError(f"score is {score}")
            rows.append((str(record["sentence1"]), str(record["sentence2"]), score))
    except (BadRow, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{source}, row {number}: sentence1, sentence2 and a score expected ({error!r}).") from None
    except UsageError as error:
        raise UsageError(
            f"eval=sts: {error} Name a folder that has {file}: eval.sts.path=… or UNITSPHERE_DATA"
        ) from None
    if len(rows) < 2:
        raise UsageError(f"{source}: {len(rows)} pairs; a correlation needs two.")
    return pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"])
