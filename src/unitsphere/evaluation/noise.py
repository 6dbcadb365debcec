"""What happens to texts on their way in: typing errors, casing, lost words, lost punctuation, other word order.

Papers: Belinkov & Bisk 2018, https://arxiv.org/abs/1711.02173 (keyboard, swap and other noise at a stated rate);
Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196 (synonyms, swaps, deletion).

A function here takes a text and a source of chance, and returns the noisy text; the same chance gives the same text.
A word is that of `formats.words`: what stands between spaces, and where there are none, as in Chinese, a character.
"""

import hashlib
import re
import unicodedata
from random import Random
from typing import Literal

from unitsphere.errors import UsageError
from unitsphere.formats.synonyms import read
from unitsphere.formats.words import WORD

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letter -> the letters around it on a US keyboard, whose rows are shifted by half a key each."""
    place = {key: (2 * x + y, y) for y, row in enumerate(ROWS) for x, key in enumerate(row)}
    return {
        key: "".join(k for k, (u, v) in place.items() if k != key and abs(u - x) <= 2 and abs(v - y) <= 1)
        for key, (x, y) in place.items()
    }


NEIGHBOURS = _neighbours()


def typos(text: str, random: Random, rate: float) -> str:
    """Each letter is hit with probability `rate`: replaced by its neighbour on the keyboard, left out, or swapped with
    the character behind it, if there is one. A letter that the keyboard does not have (Chinese) is left out or
    swapped."""
    rate = _checked(rate)
    out, rest = [], list(text)
    while rest:
        char = rest.pop(0)
        if not char.isalpha() or random.random() >= rate:
            out.append(char)
            continue
        kinds = ["delete", *(["swap"] if rest else []), *(["replace"] if char.lower() in NEIGHBOURS else [])]
        kind = random.choice(kinds)
        if kind == "swap":
            out += [rest.pop(0), char]
        elif kind == "replace":
            near = random.choice(NEIGHBOURS[char.lower()])
            out.append(near.upper() if char.isupper() else near)
    return "".join(out) if out else text


def casing(text: str, random: Random, to: Literal["lower", "upper", "title"]) -> str:
    """All letters lower case, upper case, or the first of each word upper case."""
    if to not in ("lower", "upper", "title"):
        raise UsageError(f"eval.robustness: to={to}: lower, upper or title would fit.")
    return " ".join(word.capitalize() for word in text.split()) if to == "title" else getattr(text, to)()


def dropped_words(text: str, random: Random, rate: float) -> str:
    """Each word is left out with probability `rate`; one word at least stays."""
    rate = _checked(rate)
    words = list(WORD.finditer(text))
    gone = [word for word in words if random.random() < rate]
    if len(gone) == len(words):
        gone = gone[1:]
    for word in reversed(gone):
        text = text[: word.start()] + text[word.end() :]
    return " ".join(text.split())


def no_punctuation(text: str, random: Random) -> str:
    """Without characters of Unicode's class P; a text of nothing else stays."""
    kept = "".join(" " if unicodedata.category(char).startswith("P") else char for char in text)
    return " ".join(kept.split()) or text


def swapped_words(text: str, random: Random, rate: float) -> str:
    """Each word changes places with the next one with probability `rate`."""
    rate = _checked(rate)
    words, found = list(WORD.finditer(text)), [word.group() for word in WORD.finditer(text)]
    at = 0
    while at < len(found) - 1:
        if random.random() < rate:
            found[at], found[at + 1] = found[at + 1], found[at]
            at += 1
        at += 1
    for word, other in reversed(list(zip(words, found, strict=True))):
        text = text[: word.start()] + other + text[word.end() :]
    return text


class Synonyms:
    """Words of a table are replaced by one of their synonyms with probability `rate`.

    Args:
        path: A table (see `formats.synonyms`).
        rate: Of the words that are in the table.
    """

    def __init__(self, path: str, rate: float):
        self.table, self.rate = read(path), _checked(rate)
        content = repr(sorted(self.table.items())).encode("utf-8", "surrogatepass")
        self.settings = {"rate": rate, "table": hashlib.sha256(content).hexdigest()[:16]}
        longest_first = sorted(map(re.escape, self.table), key=len, reverse=True)
        self.pattern = re.compile(
            "|".join(rf"(?<![a-z0-9]){word}(?![a-z0-9])" for word in longest_first), re.IGNORECASE
        )

    def __call__(self, text: str, random: Random) -> str:
        def other(match: re.Match[str]) -> str:
            choice: str = random.choice(self.table.get(match.group().casefold(), [match.group()]))  # Turkish i
            return choice if random.random() < self.rate else match.group()

        return self.pattern.sub(other, text)


def _checked(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise UsageError(f"eval.robustness: rate={rate}: a share in [0, 1] would fit.")
    return rate
