"""A table of token vectors out of an encoder: the far end of small and fast.

Papers: Tulkens & van Dongen 2024, model2vec, https://github.com/MinishLab/model2vec (each token alone through the
encoder, PCA, weights by rank); Arora et al. 2017, A simple but tough-to-beat baseline for sentence embeddings,
https://openreview.net/forum?id=SyK00v5xx (SIF weights).
"""

from itertools import chain, islice
from typing import Literal

import numpy as np
import torch
from sklearn.decomposition import PCA

from unitsphere.compression.step import Context, Step, trainable
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.static import StaticModel
from unitsphere.types import Text, Tokens


class Static(Step):
    """e_t = a / (a + p_t) · PCA(z_t): z_t is the pooled vector of token t between special tokens, p_t its frequency.

    Special tokens count nothing, nor does an unknown one. Prompts are left out: they would add one vector to all texts.

    Args:
        dim: Width after the PCA, at most the encoder's; None leaves the PCA out.
        a: Of the weights; Arora et al. take 1e-3 to 1e-4, model2vec 1e-4 with its "zipf". Of all-MiniLM-L6-v2 and
            counted words, 1e-3 was better than 1e-2 and 1e-4 on STS-B dev and on SciFact's training queries.
        frequencies: "texts" counts the tokens of the training texts; "zipf" takes p_t proportional to 1 / (2 + t), as
            model2vec does, for vocabularies ordered by frequency.

    Raises:
        UsageError: A setting is out of range, or there are no texts to count.
    """

    stage = "before"
    network = False

    def __init__(self, dim: int | None = 256, a: float = 1e-3, frequencies: Literal["texts", "zipf"] = "texts"):
        self.ways = {"texts": _counted, "zipf": _zipf}
        if frequencies not in self.ways:
            raise UsageError(f"static.frequencies={frequencies}: texts or zipf would fit.")
        if a <= 0 or (dim is not None and dim < 1):
            raise UsageError(f"static: dim={dim} and a={a}; 1 or more and a number over 0 would fit.")
        self.dim, self.a, self.frequencies = dim, a, frequencies

    def apply(self, model: Model, context: Context) -> Model:
        embedder = trainable(model, "static")
        tokenizer = embedder.encoder.tokenizer
        special = set(tokenizer.all_special_ids)
        ids = np.array([index for index in sorted(tokenizer.get_vocab().values()) if index not in special])
        vectors = _alone(embedder, ids)
        if self.dim is not None:
            self.width(min(vectors.shape))
            vectors = PCA(self.dim, svd_solver="covariance_eigh").fit_transform(vectors)
        p = self.ways[self.frequencies](embedder, ids, context)
        table = torch.zeros(max(tokenizer.get_vocab().values()) + 1, vectors.shape[1])
        table[ids] = torch.from_numpy(vectors * (self.a / (self.a + p))[:, None]).float()
        return StaticModel(table, tokenizer, embedder.encoder.max_length).eval()

    def width(self, dim: int) -> int:
        if self.dim is not None and self.dim > dim:
            raise UsageError(f"static.dim={self.dim}: at most {dim} would fit this encoder.")
        return self.dim or dim


@torch.no_grad()
def _alone(embedder: Embedder, ids: np.ndarray, batch: int = 512) -> np.ndarray:
    """(len(ids), D) in float64: the vectors of single tokens, pooled and projected but not normalised."""
    embedder.eval()
    encoder, found = embedder.encoder, []
    before, after = encoder.frame()
    frame = encoder.tokenizer("a")["input_ids"]
    first, last = frame[:before], frame[len(frame) - after :]
    for start in range(0, len(ids), batch):
        texts = [Text(np.array([*first, index, *last])) for index in ids[start : start + batch]]
        tokens = encoder.pad(texts)
        moved = Tokens(*(x.to(embedder.device) for x in (tokens.ids, tokens.mask, tokens.prompt)))
        z = embedder.pooling(encoder(moved, layers=embedder.pooling.needs_layers))
        found.append((z if embedder.projection is None else embedder.projection(z)).float().cpu())
    return torch.cat(found).double().numpy()


def _counted(embedder: Embedder, ids: np.ndarray, context: Context) -> np.ndarray:
    count, texts = np.zeros(ids.max() + 1), chain.from_iterable(context.pairs)
    while some := list(islice(texts, 1024)):
        read = np.concatenate(embedder.encoder.tokenize(some, context.max_length))
        count += np.bincount(read, minlength=len(count))[: len(count)]
    if not count[ids].any():
        raise UsageError("static.frequencies=texts: there are no training texts to count tokens of; zipf needs none.")
    return count[ids] / count[ids].sum()


def _zipf(embedder: Embedder, ids: np.ndarray, context: Context) -> np.ndarray:
    p = 1 / np.arange(2, len(ids) + 2)
    return p / p.sum()
