"""Keep texts of some languages.

Papers: Lui & Baldwin 2012, langid.py, https://aclanthology.org/P12-3005. Code: https://github.com/adbar/py3langid
"""

from collections.abc import Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from unitsphere.data.preparation.step import TextStep
from unitsphere.errors import UsageError


class Language(TextStep):
    """Drops texts whose most probable language, of all that the model knows, is another or not probable enough.

    The model counts byte n-grams. It is good on sentences and poor on a few words, on names and on code: look at what
    is dropped before you trust it with queries, or let short texts pass with `min_characters`.

    Args:
        languages: ISO 639-1 codes: en, zh, de, …
        min_probability: In [0, 1].
        min_characters: A text shorter than this is kept unseen.

    Raises:
        UsageError: `languages` is empty or has a code that the model does not know.
    """

    def __init__(self, languages: Sequence[str], min_probability: float = 0.5, min_characters: int = 20):
        self.model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = [code for code in languages if code not in self.model.nb_classes]
        if unknown or not languages:
            known = ", ".join(sorted(set(self.model.nb_classes)))
            raise UsageError(f"preparation.language.languages={list(languages)}: codes out of {known} would fit.")
        self.languages = frozenset(languages)
        self.min_probability, self.min_characters = min_probability, min_characters

    def text(self, text: str) -> str | None:
        if len(text) < self.min_characters:
            return text
        language, probability = self.model.classify(text)
        return text if language in self.languages and probability >= self.min_probability else None
