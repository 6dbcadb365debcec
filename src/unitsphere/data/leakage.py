"""Is what a run will be scored on among what it is trained on?

Papers: Lewis et al. 2020, test-train overlap, https://arxiv.org/abs/2008.02637; Elangovan et al. 2021,
https://arxiv.org/abs/2102.01818
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.similar import Same
from unitsphere.types import Evaluator

EXAMPLES = 3
Places = dict[int, set[int]]  # row -> where in it: 0 anchor, 1 positive, from 2 on negatives


class Leakage:
    """Looks for what evaluators hold (`Evaluator.held`) in the training rows, and stops, cleans or reports.

    What counts as found:

    - a text that is held alone (a query, a text to classify) is found where it is a row's anchor or positive;
    - texts that are held together (the two sentences of a scored pair) are found where they stand in one row: training
      on that row is training on the answer. Where they only stand in the data apart, as all sentences do for an
      unsupervised objective, they are counted as `apart`, reported, and stop nothing.

    Documents to search are held by nobody: training on a corpus that is searched is what domain adaptation is.

    Args:
        same: Says which texts are the same.
        threshold: The share of a test set, in [0, 1], above which the run stops. Dev is reported only.
        action: "stop"; "remove", which takes the rows that were found, by dev too, out of training; or "report".

    Raises:
        UsageError: There is no such action.
    """

    def __init__(self, same: Same, threshold: float = 0.02, action: Literal["stop", "remove", "report"] = "stop"):
        if action not in ("stop", "remove", "report"):
            raise UsageError(f"leakage.action={action}: stop, remove or report would fit.")
        self.same, self.threshold, self.action = same, threshold, action

    def __call__(self, rows: Rows, evaluators: Mapping[str, Sequence[Evaluator]]) -> tuple[Rows, list[dict[str, Any]]]:
        """The rows that may be trained on, and a report of each set.

        Args:
            rows: As they would be trained on.
            evaluators: Split -> what scores it.

        Returns:
            With each report: `split`, `set`, `held` (how many texts or pairs it has), `found`, `share`, `apart`, and
            `examples` with both texts and the row's number, counted from 0 after preparation.

        Raises:
            UsageError: No row is left.
        """
        held = {
            (split, name): list(dict.fromkeys((item,) if isinstance(item, str) else item for item in items))
            for split, several in evaluators.items()
            for evaluator in several
            for name, items in evaluator.held().items()
        }
        sought = dict.fromkeys(text for items in held.values() for item in items for text in item)
        matches = self.same.matches(sought, (text for _, _, text in _texts(rows))) if sought else {}
        matched = {text for texts in matches.values() for text in texts}
        places: dict[str, list[tuple[int, int]]] = {text: [] for text in matched}
        for row, place, text in _texts(rows) if matched else ():
            if text in matched:
                places[text].append((row, place))
        where = {text: _by_row(at for other in others for at in places[other]) for text, others in matches.items()}
        reports: list[dict[str, Any]] = []
        leaking: set[int] = set()
        for (split, name), items in held.items():
            found = {item: together for item in items if (together := _together(item, where))}
            leaking.update(row for together in found.values() for row in together)
            apart = sum(item not in found and all(text in where for text in item) for item in items if len(item) > 1)
            examples = [
                {"held": list(item), "row": together[0], "training": _written(rows, together[0])}
                for item, together in list(found.items())[:EXAMPLES]
            ]
            share = len(found) / max(len(items), 1)
            sizes = {"held": len(items), "found": len(found), "share": round(share, 4), "apart": apart}
            reports.append({"split": split, "set": name, **sizes, "examples": examples})
        if self.action != "remove" or not leaking:
            return rows, reports
        if len(leaking) == len(rows):
            raise UsageError(f"leakage.action=remove leaves none of {len(rows)} training rows.")
        return rows.take([i for i in range(len(rows)) if i not in leaking]), reports

    def check(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Raise where a run must not go on.

        Raises:
            UsageError: Too much of a test set was found, and `action` is "stop".
        """
        for report in reports:
            if self.action == "stop" and report["split"] == "test" and report["share"] > self.threshold:
                examples = "".join(
                    f"\n  {_quoted(example['held'])} is training row {example['row']}: {_quoted(example['training'])}"
                    for example in report["examples"]
                )
                raise UsageError(
                    f"{_found(report)}, which is more than leakage.threshold={self.threshold}:{examples}\n"
                    "Train on other data, or take these rows out with leakage.action=remove, or, where this is meant, "
                    "go on with leakage.action=report"
                )


def told(report: Mapping[str, Any]) -> str:
    """One line of a report."""
    apart = report["apart"]
    return _found(report) + (f"; the texts of {apart:,} more are in training, but apart" if apart else "")


def _found(report: Mapping[str, Any]) -> str:
    where = f"{report['split']}/{report['set']} ({report['share']:.1%})"
    return f"leakage: {report['found']:,} of the {report['held']:,} in {where} are training rows"


def _texts(rows: Rows) -> Iterator[tuple[int, int, str]]:
    """(row, place, text) of every text."""
    for place, column in enumerate((rows.anchor, rows.positive or ())):
        yield from ((row, place, text) for row, text in enumerate(column))
    for row, several in enumerate(rows.negative or ()):
        yield from ((row, place, text) for place, text in enumerate(several, 2))


def _by_row(places: Iterator[tuple[int, int]]) -> Places:
    found: Places = {}
    for row, place in places:
        found.setdefault(row, set()).add(place)
    return found


def _together(item: tuple[str, ...], where: Mapping[str, Places]) -> list[int]:
    """The rows in which all texts of an item stand, each in a place of its own; one that is held alone counts as an
    anchor or a positive only."""
    if any(text not in where for text in item):
        return []
    if len(item) == 1:
        return sorted(row for row, places in where[item[0]].items() if min(places) < 2)
    common = set.intersection(*(set(where[text]) for text in item))
    return sorted(
        row
        for row in common
        if any(len(set(chosen)) == len(item) for chosen in product(*(where[text][row] for text in item)))
    )


def _written(rows: Rows, row: int) -> list[str]:
    return [text for column in (rows.anchor, rows.positive) if column is not None for text in [column[row]]]


def _quoted(texts: Sequence[str]) -> str:
    return " | ".join(repr(text if len(text) <= 80 else f"{text[:77]}…") for text in texts)
