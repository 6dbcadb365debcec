"""One way to write each character.

Unicode normal forms: https://unicode.org/reports/tr15/; ftfy (Speer 2019): https://github.com/rspeer/python-ftfy
"""

import unicodedata
from typing import Literal

import ftfy

from unitsphere.data.preparation.step import TextStep
from unitsphere.errors import UsageError


class Unicode(TextStep):
    """Unicode normal form, after mending what a wrong encoding has done ("schÃ¶n" for "schön").

    Args:
        form: "NFC" composes accents and changes nothing that a reader sees; "NFKC" also makes ﬁ into fi, ² into 2
            and full-width Ａ into A.
        fix: Mend the text with ftfy first, which also replaces curly quotes and HTML entities.

    Raises:
        UsageError: There is no such form.
    """

    def __init__(self, form: Literal["NFC", "NFKC"] = "NFC", fix: bool = False):
        if form not in ("NFC", "NFKC"):
            raise UsageError(f"preparation.unicode.form={form}: NFC or NFKC would fit.")
        self.form, self.fix = form, fix

    def text(self, text: str) -> str:
        mended = ftfy.fix_text(text, normalization=None) if self.fix else text
        return unicodedata.normalize(self.form, mended)
