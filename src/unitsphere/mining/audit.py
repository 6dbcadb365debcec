"""How many mined negatives are positives in truth? Estimated twice, by labels that are hidden and by a cross-encoder.

Papers: Qu et al. 2021, RocketQA, https://arxiv.org/abs/2010.08191 (false negatives among what ranks highest).
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from unitsphere.mining.candidates import Negative
from unitsphere.mining.miner import Miner
from unitsphere.similar import normalised


def hidden_positives(
    miner: Miner, queries: Sequence[str], positives: Sequence[Sequence[str]], count: int, seed: int = 0
) -> dict[str, float]:
    """Hide one labelled positive of a query, mine as if it had never been labelled, and see whether it is taken.

    A query with one positive is left without any, so that no margin can hold: its share is what sources and ranks alone
    would take, an upper bound. Where a query has several, the others stand for the margin, as they do in mining.

    Args:
        miner: With the settings to audit.
        queries: Q texts.
        positives: The labelled positives of each.
        count: Hidden positives at most, drawn at random.
        seed: Of the draw.

    Returns:
        `hidden/several` and `hidden/single`: how many were hidden of queries with several and with one positive;
        `false_negatives/several`, `false_negatives/single`: the share of them that was taken.
    """
    pairs = [(q, text) for q, texts in enumerate(positives) for text in dict.fromkeys(texts)]
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:count]
    asked = [pairs[i] for i in drawn if len(miner.places.of([pairs[i][1]]))]  # a document outside cannot be mined
    left = [[text for text in positives[q] if normalised(text) != normalised(hidden)] for q, hidden in asked]
    mined = miner([queries[q] for q, _ in asked], left) if asked else []
    taken = np.array(
        [
            bool(np.isin(miner.places.of([hidden]), [negative.row for negative in negatives]).any())
            for (_, hidden), negatives in zip(asked, mined, strict=True)
        ],
        bool,
    )
    several, out = np.array([bool(texts) for texts in left], bool), {}
    for name, which in (("several", several), ("single", ~several)):
        out[f"hidden/{name}"] = float(which.sum())
        if which.any():
            out[f"false_negatives/{name}"] = float(taken[which].mean())
    return out


def agreement(
    score: Callable[[Sequence[tuple[str, str]]], np.ndarray],
    documents: Sequence[str],
    queries: Sequence[str],
    positives: Sequence[Sequence[str]],
    mined: Sequence[Sequence[Negative]],
    count: int,
    seed: int = 0,
) -> dict[str, float]:
    """What a cross-encoder says of negatives drawn at random.

    Args:
        score: (query, document) pairs to (R, 1) scores.
        documents: The corpus.
        queries: Q texts.
        positives: The labelled positives of each.
        mined: The negatives of each.
        count: Queries asked at most.
        seed: Of the draw.

    Returns:
        `cross_encoder/queries`: how many were asked; `cross_encoder/over_positive`: the share of their negatives that
        it scores at or over the query's lowest positive, an estimate of the false negatives.
    """
    some = [q for q in range(len(queries)) if positives[q] and mined[q]]
    some = [some[i] for i in np.random.default_rng(seed).permutation(len(some))[:count]]
    over: list[float] = []
    for q in some:
        texts = [*positives[q], *(documents[negative.row] for negative in mined[q])]
        scores = score([(queries[q], text) for text in texts])[:, 0]
        over += list(scores[len(positives[q]) :] >= scores[: len(positives[q])].min())
    share = {"cross_encoder/over_positive": float(np.mean(over))} if over else {}
    return {"cross_encoder/queries": float(len(some)), **share}


def scores(mined: Sequence[Sequence[Negative]]) -> pd.DataFrame:
    """One row a negative: source, rank, score, positive and what filters added."""
    lines = [
        {"query": q, "source": n.source, "rank": n.rank, **n.scores}
        for q, negatives in enumerate(mined)
        for n in negatives
    ]
    return pd.DataFrame(lines, columns=None if lines else ["query", "source", "rank", "score", "positive"])
