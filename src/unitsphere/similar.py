"""Which texts say the same: equal but for how they are set, or nearly equal.

Papers: Broder 1997, resemblance and MinHash, https://doi.org/10.1109/SEQUEN.1997.666900; Lee et al. 2021, near
duplicates in training data, https://arxiv.org/abs/2107.06499. Code: https://github.com/ekzhu/datasketch
"""

import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import regex
from datasketch import MinHash, MinHashLSH

from unitsphere.errors import UsageError

# Not vowel signs, which regex counts as parts of words, nor pictographs, nor the signs that tell C from C++ and C#.
FOLDED = regex.compile(r"[^\w\p{So}+#=<>%$]+")
PERMUTATIONS = 128


class Same(Protocol):
    """A sense in which two texts are the same."""

    def representatives(self, texts: Iterable[str]) -> Mapping[str, str]:
        """Each text -> the first one that it is the same as; of the first of its kind, itself."""
        ...

    def matches(self, wanted: Iterable[str], among: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """Each wanted text that is there -> those among the others that are the same, each once. The others are read
        one by one, however many there are."""
        ...


class Exact:
    """Equal but for case, white space, punctuation and the form of characters (NFKC)."""

    def representatives(self, texts: Iterable[str]) -> Mapping[str, str]:
        first: dict[str, str] = {}
        return {text: first.setdefault(normalised(text), text) for text in texts}

    def matches(self, wanted: Iterable[str], among: Iterable[str]) -> Mapping[str, Sequence[str]]:
        sought: dict[str, list[str]] = defaultdict(list)
        for text in wanted:
            sought[normalised(text)].append(text)
        return _by_wanted((other, sought.get(normalised(other), ())) for other in among)


class Near:
    """Alike: the Jaccard similarity |A ∩ B| / |A ∪ B| of the two sets of shingles is high.

    Candidates come from MinHash with locality-sensitive hashing, and of each the similarity is computed, so that
    whatever is found is right; of pairs just above the threshold a few are not found. One core does about 7,000 texts
    of 60 characters, or 850 of 1,000, a second.

    Args:
        jaccard: In (0, 1].
        shingle: Characters or words in a row that make one shingle; a shorter text is one shingle. 5 characters suit
            alphabets, 2 or 3 Chinese.
        unit: "characters" or "words", of the text as `normalised` has it.

    Raises:
        UsageError: A setting is out of its range.
    """

    def __init__(self, jaccard: float = 0.8, shingle: int = 5, unit: Literal["characters", "words"] = "characters"):
        if not 0 < jaccard <= 1 or shingle < 1 or unit not in ("characters", "words"):
            raise UsageError(
                f"near duplicates: jaccard={jaccard}, shingle={shingle}, unit={unit}: a number in (0, 1], "
                "1 or more, and characters or words would fit."
            )
        self.jaccard, self.shingle, self.unit = jaccard, shingle, unit

    def representatives(self, texts: Iterable[str]) -> Mapping[str, str]:
        index, first = self._index(), {}
        ordered = list(dict.fromkeys(texts))
        for number, (text, hashed) in enumerate(zip(ordered, self._hashed(ordered), strict=True)):
            mine = self.shingles(text)
            for earlier in sorted(index.query(hashed)):
                if self.alike(mine, self.shingles(ordered[earlier])):
                    first[text] = ordered[earlier]
                    break
            else:
                index.insert(number, hashed)
                first[text] = text
        return first

    def matches(self, wanted: Iterable[str], among: Iterable[str]) -> Mapping[str, Sequence[str]]:
        index, sought = self._index(), {text: self.shingles(text) for text in wanted}
        for text, hashed in zip(sought, self._hashed(sought), strict=True):
            index.insert(text, hashed)
        sizes = [len(shingles) for shingles in sought.values()]
        low, high = min(sizes, default=0) * self.jaccard, max(sizes, default=0) / self.jaccard
        # |A ∩ B| / |A ∪ B| is at most the smaller size over the larger: a long document is not hashed.
        fitting = dict.fromkeys(other for other in among if low <= len(self.shingles(other)) <= high)
        return _by_wanted(
            (other, [t for t in index.query(hashed) if self.alike(sought[t], self.shingles(other))])
            for other, hashed in zip(fitting, self._hashed(fitting), strict=True)
        )

    def shingles(self, text: str) -> set[str]:
        """All runs of `shingle` characters or words, or the one shorter run that there is."""
        plain = normalised(text)
        parts: Sequence[str] = plain if self.unit == "characters" else plain.split()
        between = "" if self.unit == "characters" else " "
        count = max(1, len(parts) - self.shingle + 1)
        return {between.join(parts[i : i + self.shingle]) for i in range(count)}

    def alike(self, a: set[str], b: set[str]) -> bool:
        """Whether two sets of shingles reach the threshold."""
        if min(len(a), len(b)) < self.jaccard * max(len(a), len(b)):  # the most that they can share
            return False
        return len(a & b) >= self.jaccard * len(a | b)

    def _index(self) -> MinHashLSH:
        # Weighed towards finding too much, since the similarity is computed afterwards.
        return MinHashLSH(threshold=min(self.jaccard, 0.99), num_perm=PERMUTATIONS, weights=(0.1, 0.9))

    def _hashed(self, texts: Iterable[str]) -> Iterator[MinHash]:
        return MinHash.generator(map(self.shingles, texts), num_perm=PERMUTATIONS, hashfunc=_hash)


def normalised(text: str) -> str:
    """NFKC, lower case, and one space for every run of white space and punctuation.

    >>> normalised("Sort “the” ARRAY…")
    'sort the array'
    >>> normalised("वह गया।") == normalised("वह गयी")
    False
    """
    return FOLDED.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip() or text


def _hash(shingle: str) -> int:
    return zlib.crc32(shingle.encode("utf-8", "surrogatepass"))


def _by_wanted(pairs: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """(Other text, wanted texts that are the same) turned round."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for other, wanted in pairs:
        for text in wanted:
            found[text][other] = None
    return {text: list(others) for text, others in found.items()}
