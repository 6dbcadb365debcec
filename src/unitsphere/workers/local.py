"""The process itself."""

from collections.abc import Iterator, Sequence

import torch

from unitsphere.workers.encoding import Encoded, Encoding


class Local:
    """One block after another, here; on the GPU where there is one.

    Args:
        threads: CPU threads.
    """

    def __init__(self, threads: int):
        self.threads = threads

    def __call__(
        self, encoding: Encoding, blocks: Iterator[tuple[int, Sequence[str]]]
    ) -> Iterator[tuple[int, Encoded]]:
        torch.set_num_threads(self.threads)
        for number, texts in blocks:
            yield number, encoding(texts)
