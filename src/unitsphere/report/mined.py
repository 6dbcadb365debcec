"""Mined negatives as a picture: how far they lie below the positives, source by source."""

from pathlib import Path

import pandas as pd

from unitsphere.report.html import panels


def pictures(negatives: pd.DataFrame, folder: Path) -> None:
    """Write scores.png: for each source the scores of mined negatives and of the lowest positive of their queries.

    Args:
        negatives: One row a negative, with query, source, score and positive (see `mining.audit.scores`).
        folder: Where.
    """
    scored = negatives.dropna(subset="score") if "score" in negatives else negatives.iloc[:0]
    sources = list(scored.groupby("source", sort=False)) if len(scored) else []
    if not sources:
        return
    figure, axes = panels(1, len(sources), (4.6 * len(sources), 3.2))
    for axis, (name, part) in zip(axes.flat, sources, strict=True):
        positive = part.drop_duplicates("query")["positive"].dropna()
        both = pd.concat([part["score"], positive])
        shared = {"bins": 60, "range": (both.min(), both.max()), "alpha": 0.6, "density": True}
        axis.hist(positive, label=f"lowest positive of {len(positive):,} queries", color="#2563eb", **shared)
        axis.hist(part["score"], label=f"{len(part):,} mined negatives", color="#d97706", **shared)
        axis.set_title(
            f"{name}: score, negatives {part['score'].mean():.3g}, positives {positive.mean():.3g} on average"
        )
        axis.set_yticks([])
        axis.legend(frameon=False)
    figure.savefig(folder / "scores.png", dpi=150)
