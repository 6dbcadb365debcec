"""INT4 weights with a scale and a zero point for every group of weights, executed by ONNX Runtime's MatMulNBits.

Papers: Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323 (groups; the rounding here is to the nearest);
Dettmers & Zettlemoyer 2022, The case for 4-bit precision, https://arxiv.org/abs/2212.09720
Code: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits
"""

import numpy as np
from onnx import helper

from unitsphere.compression.products import DOMAIN, Product, Replacement
from unitsphere.compression.quantized import Quantized
from unitsphere.errors import UsageError

TOP = 15  # of a code


class Int4(Quantized):
    """w ~ (q - z) s, q and z in 0…15, with s = (max - min) / 15 of each `group_size` weights of a column.

    Only weights are rounded, so it needs no data. It saves memory; whether time, depends on the processor.

    Args:
        group_size: 16, 32, 64, 128 or 256. Smaller keeps more and costs (4 + 0.5) / group_size bytes a weight.
        int8_activations: Multiply in int8 (blocks of activations are rounded while it runs), else in float32.
        embeddings: As for `Quantized`.

    Raises:
        UsageError: Another group size.
    """

    def __init__(self, group_size: int = 32, int8_activations: bool = True, embeddings: bool = True):
        super().__init__(embeddings)
        if group_size not in (16, 32, 64, 128, 256):
            raise UsageError(f"group_size={group_size}: 16, 32, 64, 128 or 256 would fit.")
        self.group_size, self.int8_activations = group_size, int8_activations
        self.precision = f"int4 weights in groups of {group_size} (onnx)"

    def product(self, p: Product) -> Replacement:
        k, n = p.weight.shape
        codes, scales, zeros = grouped(p.weight, self.group_size)
        names = [f"{p.name}_{part}" for part in ("int4", "scales", "zeros")]
        node = helper.make_node(
            "MatMulNBits",
            [p.a, *names, *(["", p.bias] if p.bias else [])],
            [p.out],
            domain=DOMAIN,
            K=k,
            N=n,
            bits=4,
            block_size=self.group_size,
            accuracy_level=4 if self.int8_activations else 1,
        )
        packed = [packed_pairs(codes), scales.reshape(-1), packed_pairs(zeros).reshape(-1)]
        return Replacement([node], dict(zip(names, packed, strict=True)))


def grouped(weight: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight (K, N) -> codes uint8 (N, G, size), scales float32 (N, G), zero points uint8 (N, G), G = ceil(K / size).

    A last group that is not full is filled with zeros.
    """
    k, n = weight.shape
    groups = -(-k // size)
    w = np.zeros((n, groups * size), dtype=np.float32)
    w[:, :k] = weight.T
    w = w.reshape(n, groups, size)
    low, high = np.minimum(w.min(axis=2), 0), np.maximum(w.max(axis=2), 0)  # zero has a code
    scale = np.maximum(high - low, 1e-12) / TOP
    zero = np.clip(np.round(-low / scale), 0, TOP)
    codes = np.clip(np.round(w / scale[..., None]) + zero[..., None], 0, TOP)
    return codes.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def packed_pairs(codes: np.ndarray) -> np.ndarray:
    """(…, m) codes of four bits -> (…, ceil(m / 2)) bytes, the earlier code in the lower half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4
