"""Words of any language, for steps that count, delete or move them: what stands between spaces, but a character at a
time where the script puts no spaces (Chinese and Japanese; Thai, Khmer and Lao are not divided)."""

import re
from collections.abc import Sequence

from unitsphere.scripts import PUNCTUATION, SPACELESS

ALONE = SPACELESS + PUNCTUATION
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")
NEEDLESS = re.compile(rf"(?<=[{ALONE}]) | (?=[{ALONE}])")
SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\s*\n\s*")


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("sort 一个列表, quickly")
    ['sort', '一', '个', '列', '表', ',', 'quickly']
    """
    return WORD.findall(text)


def joined(parts: Sequence[str]) -> str:
    """A text out of words, with a space between two of them unless one is of a script without spaces.

    >>> joined(["sort", "一", "个", "list", "now"])
    'sort一个list now'
    """
    return NEEDLESS.sub("", " ".join(parts))


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, none of them empty.

    An abbreviation before a space ends one too.

    >>> sentences("Sort it. Then search by 3.5 or so\\n第一句。第二句！")
    ['Sort it.', 'Then search by 3.5 or so', '第一句。', '第二句！']
    """
    return [part for part in SENTENCE.split(text.strip()) if part]
