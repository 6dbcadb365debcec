"""1 bit a number (see `search.codes.Binary`).

Papers: Yamada et al. 2021, Binary Passage Retriever, https://arxiv.org/abs/2106.00882 (the float query judges what its
bits have found). Relations: `index=binary` finds these candidates in an index.
"""

from unitsphere.coded import Coded
from unitsphere.compression.step import Context, Step
from unitsphere.model import Model
from unitsphere.search.codes import Binary


class BinaryVectors(Step):
    """Signs of the numbers.

    Args:
        rescore: Whether a query keeps its numbers: q · sign(d), which is what rescoring the candidates of bits by the
            float query comes to when every document is a candidate. Without, it is bits, too.
    """

    stage = "vector"
    ends = True

    def __init__(self, rescore: bool = True):
        self.rescore = rescore

    def apply(self, model: Model, context: Context) -> Model:
        coded = Coded.of(model)
        return coded.stored_as(Binary(coded.dim, codes_queries=not self.rescore))
