"""A model that reads two texts at once and scores how well they fit: a teacher, or a reranker.

Paper: Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085. Code: https://github.com/huggingface/transformers
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unitsphere import paths
from unitsphere.errors import UsageError


class CrossEncoder:
    """Scores pairs of texts: its first logit.

    Args:
        path: A model folder or a hub id.
        max_length: Tokens of a pair; longer ones are cut at the longer text.
        batch_size: Pairs a forward pass.

    Raises:
        UsageError: Nothing loadable is there.
    """

    def __init__(self, path: str, max_length: int = 256, batch_size: int = 64):
        source = str(paths.model(path) or path)
        try:
            self.model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{path}: no cross-encoder is there ({str(error).splitlines()[0]})") from error
        self.max_length, self.batch_size = max_length, batch_size

    @torch.no_grad()
    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(R, 1) float32."""
        out = []
        for start in range(0, len(pairs), self.batch_size):
            some = [list(pair) for pair in pairs[start : start + self.batch_size]]
            tokens = self.tokenizer(
                some, padding=True, truncation="longest_first", max_length=self.max_length, return_tensors="pt"
            )
            out.append(self.model(**tokens.to(self.model.device)).logits[:, :1].float().cpu().numpy())
        return np.concatenate(out)
