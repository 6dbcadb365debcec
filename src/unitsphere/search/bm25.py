"""Lexical search: BM25 over words, and over pairs of characters where a script writes no spaces.

Papers: Robertson & Zaragoza 2009, The Probabilistic Relevance Framework, https://doi.org/10.1561/1500000019; Lù 2024,
BM25S, https://arxiv.org/abs/2407.03618 (the index); Kamphuis et al. 2020, Which BM25 Do You Mean? (Lucene's variant).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
import regex
import Stemmer

from unitsphere.errors import UsageError
from unitsphere.scripts import HANGUL, SPACELESS, UNSPACED

# Runs of Han, kana and Hangul become overlapping pairs, as in Lucene's CJKAnalyzer; so do Thai and its kin. A word of
# other scripts has its vowel signs, which `re` would cut it at.
PAIRED = SPACELESS + HANGUL + UNSPACED
WORD = regex.compile(rf"([{PAIRED}]+)|[^\W{PAIRED}]+")


class BM25:
    """score(q, d) = sum over words w of q of idf(w) tf / (tf + k1 (1 - b + b |d| / mean |d|)),
    idf(w) = log(1 + (N - df + 0.5) / (df + 0.5)).

    Args:
        documents: N texts, read once. The index holds 8 bytes for each different word of each document.
        k1: Saturation of the term frequency tf.
        b: Normalisation by length, in [0, 1].
        stemmer: A language of Snowball ("english", …), whose stems are the words; None leaves them.

    Raises:
        UsageError: There are no documents, or no such stemmer.
    """

    def __init__(self, documents: Iterable[str], k1: float = 1.5, b: float = 0.75, stemmer: str | None = None):
        if stemmer is not None and stemmer not in Stemmer.algorithms():
            raise UsageError(f"stemmer={stemmer}: {', '.join(Stemmer.algorithms())} would fit.")
        self.stemmer = stemmer
        self._stem = Stemmer.Stemmer(stemmer).stemWords if stemmer else None
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(w, len(vocabulary)) for w in self.words(text)] for text in documents]
        if not ids:
            raise UsageError("BM25: there are no documents to search.")
        self.size = len(ids)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        if vocabulary:
            self._index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        self._vocabulary = vocabulary

    def words(self, text: str) -> list[str]:
        """Lower-case words; of a run of unspaced characters its overlapping pairs, or the one character."""
        found = []
        for match in WORD.finditer(text.lower()):
            run = match[0]
            found += [run[i : i + 2] for i in range(len(run) - 1)] if match[1] and len(run) > 1 else [run]
        return self._stem(found) if self._stem else found

    def scores(self, query: str) -> np.ndarray:
        """(N) float32: 0 where a document has no word of the query."""
        known = [self._vocabulary[w] for w in self.words(query) if w in self._vocabulary]
        if not known:
            return np.zeros(self.size, dtype=np.float32)
        return self._index.get_scores_from_ids(known)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best documents of each query that share a word with it, best first, equal scores in row order.

        Returns:
            Scores (Q, min(k, N)) float32 and row numbers int64; -inf and -1 where fewer share a word.
        """
        best = [top(self.scores(query), min(k, self.size)) for query in queries]
        shape = (len(queries), min(k, self.size))
        return (
            np.array([scores for scores, _ in best], np.float32).reshape(shape),
            np.array([rows for _, rows in best], np.int64).reshape(shape),
        )

    def write(self, folder: Path) -> None:
        """A new folder that `read` makes it from again."""
        folder.mkdir()
        if self._vocabulary:
            self._index.save(folder, show_progress=False)
        (folder / "words.json").write_text(json.dumps({"documents": self.size, "stemmer": self.stemmer}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "BM25":
        """What `write` has written."""
        about = json.loads((folder / "words.json").read_text())
        made = cls([""], stemmer=about["stemmer"])
        made.size = about["documents"]
        if (folder / "vocab.index.json").exists():
            made._index = bm25s.BM25.load(folder, show_progress=False)
            made._vocabulary = made._index.vocab_dict
        return made


def top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest numbers over 0 of (N) and their places, ties in the order of places; padded with -inf and -1."""
    threshold = np.partition(scores, -k)[-k] if k < len(scores) else 0
    rows = np.flatnonzero((scores >= threshold) & (scores > 0))
    rows = rows[np.lexsort((rows, -scores[rows]))][:k]
    missing = k - len(rows)
    return (
        np.pad(scores[rows], (0, missing), constant_values=-np.inf),
        np.pad(rows.astype(np.int64), (0, missing), constant_values=-1),
    )
