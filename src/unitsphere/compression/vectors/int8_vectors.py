"""1 byte a number (see `search.codes.Int8`).

Code: https://github.com/huggingface/sentence-transformers (`quantize_embeddings`, precision uint8).
"""

from unitsphere.coded import Coded
from unitsphere.compression.step import Context, Step
from unitsphere.compression.vectors import training
from unitsphere.model import Model
from unitsphere.search.codes import Int8


class Int8Vectors(Step):
    """Each dimension's range in training texts, in 256 steps; what lies beyond is clipped.

    Args:
        texts: Training texts that the ranges are learned from.
    """

    stage = "vector"
    ends = True

    def __init__(self, texts: int = 20_000):
        self.texts = texts

    def apply(self, model: Model, context: Context) -> Model:
        coded = Coded.of(model)
        return coded.stored_as(Int8.fitted(training.vectors(coded, context, self.texts)))
