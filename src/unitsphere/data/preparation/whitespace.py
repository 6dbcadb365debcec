"""One space where there were several, or tabs, line breaks, no-break or zero-width spaces."""

import re

from unitsphere.data.preparation.step import TextStep

BLANK = re.compile(r"[\s\u200b\u2060\ufeff]+")  # zero-width space, word joiner, byte-order mark: \s has the rest


class Whitespace(TextStep):
    """Every run of white space becomes one space; there is none at either end. A blank text is dropped."""

    def text(self, text: str) -> str:
        return BLANK.sub(" ", text).strip()
