"""INT8 weights and activations, executed by ONNX Runtime.

Papers: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
https://arxiv.org/abs/1712.05877; Wu et al. 2020, Integer Quantization for Deep Learning Inference,
https://arxiv.org/abs/2004.09602.
Relations: onnxruntime.quantization does this for any graph; here the matrix products of an encoder are written down.
"""

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
from onnx import helper

from unitsphere.compression.calibration import Histogram, Range, calibrate
from unitsphere.compression.products import DOMAIN, Product, Replacement, symmetric
from unitsphere.compression.quantized import Quantized
from unitsphere.compression.step import Context
from unitsphere.errors import UsageError
from unitsphere.graph import GraphModel


class Int8(Quantized):
    """x (…, K) w (K, N) + b  ~  s_x s_w ((q_x - z) q_w) + b: q_x uint8, q_w int8, their products summed in int32.

    s_w is the largest |w| / 127; s_x = (high - low) / 255 and z = round(-low / s_x) come from the activation's range,
    which the two kinds find in different ways. Attention's products of two activations stay in float32.

    Args:
        per_channel: A scale for each of a weight's N columns; else one for the matrix.
        weight_bits: 8, or 7 (largest |w| / 63) for processors without VNNI, whose 16-bit sums of u8 x s8 overflow.
            unitsphere itself avoids them (`graph.EXACT_INT8`); an exported graph may be run by others.
        embeddings: As for `Quantized`.

    Raises:
        UsageError: Other bits.
    """

    def __init__(self, per_channel: bool = True, weight_bits: int = 8, embeddings: bool = True):
        super().__init__(embeddings)
        if weight_bits not in (7, 8):
            raise UsageError(f"weight_bits={weight_bits}: 8 or 7 would fit.")
        self.per_channel, self.weight_bits = per_channel, weight_bits

    @abstractmethod
    def quantized(self, a: str, q: str, scale: str, zero: str) -> Replacement:
        """Nodes and constants that make q_x, s_x and z, of the names given, from the activation `a`."""

    def product(self, p: Product) -> Replacement:
        codes, scale = symmetric(p.weight, self.weight_bits, self.per_channel)
        w, w_scale = f"{p.name}_int8", f"{p.name}_scale"
        a, a_scale, a_zero = (f"{p.a}_{part}" for part in ("uint8", "scale", "zero"))
        made = self.quantized(p.a, a, a_scale, a_zero)
        inputs = [a, w, a_scale, w_scale, a_zero, "", *([p.bias] if p.bias else [])]
        node = helper.make_node("MatMulIntegerToFloat", inputs, [p.out], domain=DOMAIN)
        return Replacement([*made.nodes, node], {w: codes, w_scale: scale, **made.constants})


class Int8Dynamic(Int8):
    """The range of an activation is that of its values, anew at every pass: [min, max], zero within. Needs no data."""

    precision = "int8 dynamic (onnx)"

    def quantized(self, a: str, q: str, scale: str, zero: str) -> Replacement:
        return Replacement([helper.make_node("DynamicQuantizeLinear", [a], [q, scale, zero])], {})


class Int8Static(Int8):
    """The range is fixed beforehand on a sample of the training texts; what is beyond it later is cut off.

    Args:
        calibration: A histogram of an activation's values to its range [low, high].
        texts: Calibration texts, drawn from the training rows.
        per_channel, weight_bits, embeddings: As for `Int8`.

    Raises:
        UsageError: There is no text to calibrate on; see also `Int8`.
    """

    precision = "int8 static (onnx)"

    def __init__(
        self,
        calibration: Callable[[Histogram], Range],
        texts: int = 256,
        per_channel: bool = True,
        weight_bits: int = 8,
        embeddings: bool = True,
    ):
        super().__init__(per_channel, weight_bits, embeddings)
        if texts < 1:
            raise UsageError(f"texts={texts}: 1 or more would fit.")
        self.calibration, self.texts = calibration, texts

    def attach(self, graph: GraphModel, context: Context) -> None:
        sample = context.sample(graph, self.texts)
        self.ranges = calibrate(graph, sample, self.calibration, context.max_length)

    def quantized(self, a: str, q: str, scale: str, zero: str) -> Replacement:
        low, high = self.ranges[a]
        step: np.ndarray = np.array(max(high - low, 1e-12) / 255, dtype=np.float32)
        point: np.ndarray = np.array(np.clip(np.round(-low / step), 0, 255), dtype=np.uint8)
        return Replacement([helper.make_node("QuantizeLinear", [a, scale, zero], [q])], {scale: step, zero: point})
