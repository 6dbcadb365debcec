"""The product quantiser of Faiss (see `search.codes.PQ`).

Paper: Jégou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57. Code: https://github.com/facebookresearch/faiss
"""

from unitsphere.coded import Coded
from unitsphere.compression.step import Context, Step
from unitsphere.compression.vectors import training
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.search import codes


class PQ(Step):
    """Parts of the vectors as the nearest of 256 centroids, one byte a part.

    Args:
        bytes: Of a vector: a divisor of its width.
        texts: Training texts that the centroids are learned from, at least 256; Faiss advises 10,000.
    """

    stage = "vector"
    ends = True

    def __init__(self, bytes: int = 48, texts: int = 20_000):
        self.bytes, self.texts = bytes, texts

    def apply(self, model: Model, context: Context) -> Model:
        coded = Coded.of(model)
        self.width(coded.dim)
        z = training.vectors(coded, context, self.texts, least=2**codes.PQ_BITS)
        return coded.stored_as(codes.PQ.fitted(z, self.bytes, context.seed))

    def width(self, dim: int) -> int:
        if self.bytes < 1 or dim % self.bytes:
            fitting = ", ".join(str(n) for n in range(1, dim + 1) if not dim % n)
            raise UsageError(
                f"compression.pq.bytes={self.bytes}: vectors of {dim} numbers are cut into equal parts; {fitting} "
                "would fit."
            )
        return dim
