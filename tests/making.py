"""Embeddings and batches made up for tests of losses."""

from dataclasses import replace

import numpy as np
import torch

from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.pooling.mean import MeanPooling
from unitsphere.training.chunks import LengthSorted, embeddings
from unitsphere.training.gradient_cache import GradientCache
from unitsphere.types import Batch, Embeddings, Text

CPU = torch.device("cpu")


def vectors(n=6, owners=(), views=1, d=8, labels=None, scores=None, ids=None, seed=0):
    """Random embeddings of n rows; text ids are all different unless given."""
    generator = torch.Generator().manual_seed(seed)

    def some(k):
        return torch.randn(k, d, generator=generator, requires_grad=True)

    numbers = {"anchor": range(n), "positive": range(100, 100 + n), "negative": range(200, 200 + len(owners))}
    batch = Batch(
        tokens={},
        text_ids={c: torch.tensor(list(v), dtype=torch.long) for c, v in (numbers | (ids or {})).items()},
        negative_rows=torch.tensor(owners, dtype=torch.long),
        row_ids=torch.arange(n),
        labels=None if labels is None else torch.tensor(labels),
        scores=None if scores is None else torch.tensor(scores),
    )
    return Embeddings(tuple(some(n) for _ in range(views)), some(n), some(len(owners)) if owners else None, batch)


def model(dropout=0.1, seed=0, normalize=True, **options):
    """A tiny embedder in training mode."""
    encoder = tiny(dropout=dropout, seed=seed, **options)
    return Embedder(encoder, MeanPooling(encoder.dim), normalize=normalize).train()


def batch_of_texts(n=6, negatives=(0, 0, 4), seed=0, words=("sort", "tree", "graph", "array", "find"), equal=None):
    """N rows of made-up texts, tokenised by the tiny encoder. equal={"anchor": (0, 5)}: anchor 5 is anchor 0 again."""
    generator, tokenize = np.random.default_rng(seed), tiny().tokenize

    def some(k):
        return [" ".join(generator.choice(words, generator.integers(1, 5))) + f" {i}" for i in range(k)]

    texts = {"anchor": some(n), "positive": some(n), "negative": some(len(negatives))}
    start, ids = 0, {}
    for column, of_column in texts.items():
        ids[column] = torch.arange(start, start + len(of_column))
        start += len(of_column)
    for column, (first, again) in (equal or {}).items():
        texts[column][again], ids[column][again] = texts[column][first], ids[column][first]
    return Batch(
        tokens={c: [Text(i) for i in tokenize(t)] if t else [] for c, t in texts.items()},
        text_ids=ids,
        negative_rows=torch.tensor(negatives, dtype=torch.long),
        row_ids=torch.arange(n),
        labels=torch.tensor([0, 0, 1, 1, 2, 2][:n]),
        scores=torch.linspace(0, 1, n),
        texts=texts,
    )


def passes(model, chunks=1, cache_tokens=None, loss=None):
    """Length-sorted chunks that are kept, or the gradient cache's."""
    if cache_tokens is None:
        return LengthSorted(model.encoder.pad, chunks, CPU)
    trained = {p: None for m in (model, loss) if m is not None for p in m.parameters() if p.requires_grad}
    return GradientCache(model.encoder.pad, cache_tokens, CPU, list(trained))


def encoded(embedder, batch, loss, chunks=1, cache_tokens=None):
    """The batch through the embedder, as the training module does it."""
    keep = {"anchor", *loss.needs, *loss.optional} & set(batch.tokens)
    batch = replace(batch, tokens={c: t for c, t in batch.tokens.items() if c in keep})
    return embeddings(embedder, batch, loss.views, passes(embedder, chunks, cache_tokens, loss))


def learns(loss, e, lr=1.0, steps=20):
    """Loss before and after some gradient steps on the vectors themselves."""
    free = [z for z in (*e.anchors, e.positives, e.negatives) if z is not None]
    optimizer = torch.optim.SGD(free, lr=lr)
    first = float(loss(e).total.detach())
    for _ in range(steps):
        optimizer.zero_grad()
        loss(e).total.backward()
        optimizer.step()
    return first, float(loss(e).total.detach())
