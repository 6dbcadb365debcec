"""Queries made out of documents, where there are documents and nobody has asked anything yet.

Papers: Lee et al. 2019, inverse cloze task, https://arxiv.org/abs/1906.00300 (a part of a document as its query);
Nogueira et al. 2019, doc2query, https://arxiv.org/abs/1904.08375, and Wang et al. 2021, GPL,
https://arxiv.org/abs/2112.07577 (queries written by a model: here, a function of yours).
"""

import pkgutil
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.formats.words import joined, sentences, words
from unitsphere.similar import normalised

CROPPED = 8  # words of a cropped query


class PseudoQueries:
    """Documents to rows of (query as anchor, document as positive), one for each query of a document.

    A query that stands in its document is taken out of it, so that there is more to learn than to find equal words; a
    document that is then empty has no row.

    Your own function is called once with each document and returns a list of queries, none where there is nothing to
    ask. It may call a language model; a run that is resumed or reproduced calls it again and must get the same queries,
    so keep them in a file:

        # mine.py, in the folder where the command is run
        def ask(document: str) -> list[str]:
            return [my_model(f"Which question does this text answer? {document}")]

        python train.py loss=infonce data=text data.path=manuals.txt eval=sts preparation=pseudo_queries \\
          preparation.pseudo_queries.function=mine:ask

    Args:
        function: `title` (the first sentence or line), `summary` (the most central sentence), `crop` (8 words in a
            row), or `module:function`.
        column: Where the documents are: "anchor" or "positive". What else stood in the two columns is lost.
        remove: Take a query out of its document.

    Raises:
        UsageError: There is no such function or column, or the function does not return a list of texts.
    """

    gives: tuple[str, ...] = ("positive",)

    def __init__(self, function: str = "title", column: Literal["anchor", "positive"] = "anchor", remove: bool = True):
        if column not in ("anchor", "positive"):
            raise UsageError(f"preparation.pseudo_queries.column={column}: anchor or positive would fit.")
        self.function, self.make = function, _found(function)
        self.column, self.remove = column, remove

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        documents = getattr(rows, self.column)
        if documents is None:
            raise UsageError(f"preparation.pseudo_queries: the data has no {self.column} column to read.")
        made = {document: self._pairs(document) for document in dict.fromkeys(documents)}
        origins = [i for i, document in enumerate(documents) for _ in made[document]]
        pairs = [pair for document in documents for pair in made[document]]
        anchor, positive = [query for query, _ in pairs], [document for _, document in pairs]
        return replace(rows.take(origins), anchor=anchor, positive=positive), origins

    def _pairs(self, document: str) -> list[tuple[str, str]]:
        queries: Any = self.make(document)
        if not isinstance(queries, list | tuple) or not all(isinstance(query, str) for query in queries):
            raise UsageError(
                f"preparation.pseudo_queries.function={self.function} should return a list of texts; "
                f"of {document[:60]!r} it made {queries!r}"
            )
        cut = [(q.strip(), _without(q, document) if self.remove else document) for q in queries]
        return [(query, rest) for query, rest in cut if query and rest]


def title(document: str) -> list[str]:
    """The first sentence or line."""
    return sentences(document)[:1]


def summary(document: str) -> list[str]:
    """The sentence whose tf-idf vector is nearest to the sum of those of all sentences; the first of several. Each
    document is its own collection: idf is over its sentences."""
    parts = sentences(document)
    if len(parts) < 2:
        return parts
    vectors = TfidfVectorizer(analyzer=lambda sentence: words(normalised(sentence))).fit_transform(parts)
    closeness = vectors @ np.asarray(vectors.sum(axis=0)).ravel()  # rows have norm 1
    return [parts[int(closeness.argmax())]]


def crop(document: str) -> list[str]:
    """8 words in a row from a place that is drawn by the document itself: equal documents give equal queries."""
    parts = words(document)
    start = random.Random(document).randrange(max(1, len(parts) - CROPPED + 1))
    return [joined(parts[start : start + CROPPED])]


def _without(query: str, document: str) -> str:
    """The document less its first passage with the query's words, whatever white space is between them."""
    passage = r"\s*".join(map(re.escape, words(query)))
    return re.sub(passage, " ", document, count=1).strip()


def _found(function: str) -> Callable[[str], Any]:
    """The function of that name here, or `module:function` elsewhere."""
    try:
        made = pkgutil.resolve_name(function if ":" in function or "." in function else f"{__name__}:{function}")
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"preparation.pseudo_queries.function={function}: {error}; title, summary, crop, module:function would fit."
        ) from error
    if not callable(made):
        raise UsageError(f"preparation.pseudo_queries.function={function} is no function.")
    return made
