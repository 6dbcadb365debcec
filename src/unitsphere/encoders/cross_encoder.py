"""A model that reads two texts at once and scores how well they fit: a reranker, a filter of negatives, a teacher.

Paper: Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085. Code: https://github.com/huggingface/transformers
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unitsphere import paths
from unitsphere.encoders.attention import attend_fast
from unitsphere.encoders.linear import multiply_fast
from unitsphere.encoders.pruned import from_pretrained
from unitsphere.encoders.reader import longest_first, pass_tokens
from unitsphere.encoders.side_by_side import side_by_side
from unitsphere.encoders.transformer import longest_input
from unitsphere.errors import UsageError
from unitsphere.heap import keep_freed

CHUNK = 8192


class CrossEncoder:
    """Scores pairs of texts: its one logit. It computes on the GPU where there is one.

    Args:
        path: A run of loss=cross_encoder, a model folder or a hub id.
        max_length: Tokens of a pair, never over what the model was trained on; longer ones are cut at the longer text.
        batch_tokens: Padded tokens a forward pass (on a CPU several are computed at a time); None is
            `reader.pass_tokens`.

    Raises:
        UsageError: No cross-encoder is there, or one with more than one logit.
    """

    def __init__(self, path: str, max_length: int = 256, batch_tokens: int | None = None):
        source = str(paths.model(path) or path)
        try:
            kind = AutoModelForSequenceClassification
            model, report = from_pretrained(kind, source, dtype=torch.float32, output_loading_info=True)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{path}: no cross-encoder is there ({str(error).splitlines()[0]})") from error
        if report["missing_keys"]:
            raise UsageError(
                f"{path}: this model has no classifier, so it is no cross-encoder. Train one: python train.py "
                f"loss=cross_encoder eval=none select=last encoder=hub encoder.path={path} data=…"
            )
        if model.config.num_labels != 1:
            raise UsageError(
                f"{path}: it sorts pairs into {model.config.num_labels} classes and says not which of them means that "
                "they fit; a reranker gives one score."
            )
        attend_fast(model)
        multiply_fast(model)
        keep_freed()
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.max_length = min(max_length, longest_input(model.config, self.tokenizer))
        self.batch_tokens = batch_tokens or pass_tokens(self.model.device)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(R, 1) float32, in the order given; pairs of like length are read together."""
        chunks = [self._scored(pairs[start : start + CHUNK]) for start in range(0, len(pairs), CHUNK)]
        return np.concatenate([np.empty((0, 1), dtype=np.float32), *chunks])

    def _scored(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        out = np.empty((len(pairs), 1), dtype=np.float32)
        first, second = zip(*pairs, strict=True)
        tokens = self.tokenizer(list(first), list(second), truncation="longest_first", max_length=self.max_length)

        def compute(rows: np.ndarray) -> None:
            some = self.tokenizer.pad(
                {name: [values[i] for i in rows] for name, values in tokens.items()}, return_tensors="pt"
            )
            out[rows] = self.model(**some.to(self.model.device)).logits[:, :1].float().cpu().numpy()

        passes = list(longest_first([len(ids) for ids in tokens["input_ids"]], self.batch_tokens))
        side_by_side(compute, passes, self.model)
        return out


def scores_pairs(folder: Path) -> bool:
    """Whether the model in a folder has a classifier on top of its encoder, as a cross-encoder has."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
