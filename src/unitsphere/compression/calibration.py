"""Ranges of activations from a sample of texts: min-max, percentile, entropy.

Papers: Wu et al. 2020, Integer Quantization for Deep Learning Inference, https://arxiv.org/abs/2004.09602 (compares the
three); Migacz 2017, 8-bit Inference with TensorRT (entropy).
Relations: ONNX Runtime's calibrators count padding among the activations, and those with histograms refuse batches of
unequal length; here a text's padding is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from onnx import helper

from unitsphere import tracing
from unitsphere.compression.products import products, read
from unitsphere.errors import UsageError
from unitsphere.graph import INPUTS, OUTPUT, GraphModel
from unitsphere.types import Text

BINS = 2048
LEVELS = 256
Range = tuple[float, float]


class Histogram:
    """Counts (BINS) of an activation's values between `low` and `high`, and of their magnitudes between 0 and `top`."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, max(high, low + 1e-12)
        self.top = max(-self.low, self.high)
        self.counts, self.magnitudes = np.zeros((2, BINS), dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count more values, all of them within the range."""
        self.counts += np.histogram(values, BINS, (self.low, self.high))[0]
        self.magnitudes += np.histogram(np.abs(values), BINS, (0, self.top))[0]

    @property
    def edges(self) -> np.ndarray:
        """(BINS + 1)."""
        return np.linspace(self.low, self.high, BINS + 1)


class MinMax:
    """All values are inside."""

    def __call__(self, h: Histogram) -> Range:
        return h.low, h.high


class Percentile:
    """Leaves (100 - percentile) / 2 percent of the values outside at each end.

    Raises:
        UsageError: It is not in (50, 100].
    """

    def __init__(self, percentile: float = 99.99):
        if not 50 < percentile <= 100:
            raise UsageError(f"percentile={percentile}: a number above 50, up to 100, would fit.")
        self.tail = (100 - percentile) / 200

    def __call__(self, h: Histogram) -> Range:
        share = np.cumsum(h.counts) / h.counts.sum()
        first, last = (int(np.searchsorted(share, x)) for x in (self.tail, 1 - self.tail))
        return float(h.edges[first]), float(h.edges[min(last, BINS - 1) + 1])


class Entropy:
    """[-t, t] within min and max, t such that KL(P || Q) is least: P the distribution of |x| cut at t, with what is
    beyond counted in its last bin, Q the same with 128 levels. (The arithmetic of TensorRT's calibrator.)"""

    def __call__(self, h: Histogram) -> Range:
        levels = LEVELS // 2
        best = min(range(levels, BINS + 1, 16), key=lambda n: _divergence(h.magnitudes, n, levels))
        t = h.top * best / BINS
        return max(h.low, -t), min(h.high, t)


def _divergence(counts: np.ndarray, n: int, levels: int) -> float:
    inside = counts[:n]
    p = inside.copy()
    p[-1] += counts[n:].sum()
    of_level = np.minimum(np.arange(n) * levels // n, levels - 1)
    sums = np.bincount(of_level, weights=inside, minlength=levels)
    filled = np.bincount(of_level, weights=inside > 0, minlength=levels)
    q = np.where(inside > 0, (sums / np.maximum(filled, 1))[of_level], 0)
    if not q.sum():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    q = np.maximum(q, 1e-9)  # what is cut off where nothing was
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def calibrate(
    model: GraphModel, texts: Sequence[str], method: Callable[[Histogram], Range], max_length: int | None = None
) -> dict[str, Range]:
    """Name of each activation that enters a product with a weight -> its range.

    Args:
        model: A graph in float32.
        texts: With their prompts.
        method: Histogram to range.
        max_length: Tokens read of a text.
    """
    inputs = list(dict.fromkeys(p.a for p, _ in products(read(model.file)).values()))
    session = _watching(model.file, inputs)
    given = [i.name for i in session.get_inputs()]
    ids = sorted((Text(of_text) for of_text in model.encoder.tokenize(texts, max_length)), key=lambda t: len(t.ids))

    def passes() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(ids), 8):
            tokens = model.encoder.pad(ids[start : start + 8])
            feed = dict(zip(INPUTS, (tokens.ids, tokens.mask, tokens.prompt), strict=True))
            there = tokens.mask.numpy().astype(bool)
            out = session.run(inputs, {name: feed[name].numpy() for name in given})
            yield {n: v[there] if v.shape[:2] == there.shape else v for n, v in zip(inputs, out, strict=True)}

    low, high = dict.fromkeys(inputs, 0.0), dict.fromkeys(inputs, 0.0)  # a range holds zero
    for values in passes():
        for name, of_name in values.items():
            low[name], high[name] = min(low[name], float(of_name.min())), max(high[name], float(of_name.max()))
    histograms = {name: Histogram(low[name], high[name]) for name in inputs}
    for values in passes():
        for name, of_name in values.items():
            histograms[name].add(of_name)
    ranges = {name: method(histogram) for name, histogram in histograms.items()}
    return {name: (min(first, 0.0), max(last, 0.0)) for name, (first, last) in ranges.items()}


def _watching(file: Path, names: Sequence[str]) -> onnxruntime.InferenceSession:
    graph = read(file)
    for name in names:
        if name != OUTPUT:
            graph.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # keeps every name
    options.log_severity_level = 3
    with TemporaryDirectory() as place:
        tracing.save(graph, Path(place) / "watching.onnx")  # as a file, since in memory a graph ends at 2 GB
        return onnxruntime.InferenceSession(Path(place) / "watching.onnx", options, providers=["CPUExecutionProvider"])
