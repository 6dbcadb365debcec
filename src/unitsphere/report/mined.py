"""Mined negatives as a picture: how far they lie below the positives, source by source."""

from pathlib import Path

import pandas as pd

from unitsphere.report.html import panels


def pictures(negatives: pd.DataFrame, folder: Path) -> None:
    """Write scores.png: for each source the scores of mined negatives, and of the lowest positive of each of their
    queries.

    Args:
        negatives: One row a negative, with query, source, score and positive (see `mining.audit.scores`).
        folder: Where.
    """
    scored = negatives.dropna(subset="score") if "score" in negatives else negatives.iloc[:0]
    sources = list(scored.groupby("source", sort=False)) if len(scored) else []
    if not sources:
        return
    figure, axes = panels(1, len(sources), (4.6 * len(sources), 3.6))
    for axis, (name, part) in zip(axes.flat, sources, strict=True):
        positive = part.drop_duplicates("query")["positive"].dropna()
        both = pd.concat([part["score"], positive])
        shared = {"bins": 60, "range": (both.min(), both.max()), "alpha": 0.6, "density": True}
        for values, what, colour in ((positive, "positives", "#2563eb"), (part["score"], "mined negatives", "#d97706")):
            axis.hist(values, label=f"{len(values):,} {what}, mean {values.mean():.3g}", color=colour, **shared)
        axis.set_title(str(name))
        axis.set_xlabel("score")
        axis.set_yticks([])
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08))
    figure.savefig(folder / "scores.png", dpi=150)
