"""Embedding of texts by `Model.encode`."""

from typing import Any

import torch
from omegaconf import DictConfig

from unitsphere.bench.meter import Meter, forget_peak, peak
from unitsphere.bench.peak import synchronized
from unitsphere.build import build
from unitsphere.cli.evaluate import embedder_of
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError


def texts_of(config: DictConfig, count: int) -> list[str]:
    """The data's first different training texts: positives of pairs, else anchors.

    Raises:
        UsageError: No data is given.
    """
    if config.get("data") is None:
        raise UsageError("bench encode embeds the texts of data=…, e.g. data=docstrings, or data=text data.path=…")
    rows = build(config.data).splits.train
    return list(dict.fromkeys(rows.anchor if rows.positive is None else rows.positive))[:count]


def measure(config: DictConfig, texts: int, max_length: int, bf16: bool, batch_size: int) -> dict[str, Any]:
    """Embed so many texts once, after a few others.

    Args:
        config: Of evaluate.
        texts, max_length, bf16, batch_size: See conf/bench/encode.yaml.
    """
    chosen = texts_of(config, texts)
    model = embedder_of(config).to("cuda" if torch.cuda.is_available() else "cpu")
    if bf16 and isinstance(model, Embedder):
        model = model.bfloat16()
    model.encode(chosen[:32], max_length=max_length)
    if not isinstance(model, Embedder):  # whose passes cannot be looked into
        forget_peak()
        began = synchronized()
        model.encode(chosen, max_length=max_length)
        return {"texts/s": len(chosen) / (synchronized() - began), "peak MiB": peak()}
    meter = Meter(model.encoder.model, model, lambda args: args[0].mask)
    meter.start()
    model.encode(chosen, max_length=max_length)
    meter.stop()
    return {**meter.numbers("texts", len(chosen), trains=False), "dtype": "bfloat16" if bf16 else "float32"}
