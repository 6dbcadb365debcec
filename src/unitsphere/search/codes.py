"""Vectors as bytes: what an index, a file or a database keeps of them instead of 32-bit numbers.

Papers: Jégou et al. 2011, Product Quantization, https://doi.org/10.1109/TPAMI.2010.57; Yamada et al. 2021, Binary
Passage Retriever, https://arxiv.org/abs/2106.00882 (bits, rescored by the float query). Code: sentence-transformers'
`quantize_embeddings`, whose uint8 and ubinary codes these are; https://github.com/facebookresearch/faiss (PQ).
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

from unitsphere.build import build, check_targets

PQ_BITS = 8  # of a part's number: 256 centroids


class Code(ABC):
    """Vectors (N, dim) of length one as rows of bytes, and back.

    Attributes:
        name: As a protocol says it.
        dim: Width of the vectors.
        bytes: Of one vector.
        codes_queries: Whether a query, too, is reduced to what the code says; otherwise its own numbers are compared
            with those that the documents' codes stand for.
    """

    name: ClassVar[str]
    codes_queries: bool = False

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @property
    @abstractmethod
    def bytes(self) -> int: ...

    @abstractmethod
    def encode(self, z: np.ndarray) -> np.ndarray:
        """(N, dim) float32 -> (N, bytes) uint8."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, bytes) uint8 -> (N, dim) float32, of length one."""
        z = np.ascontiguousarray(self.values(codes), dtype=np.float32)
        faiss.normalize_L2(z)
        return z

    @abstractmethod
    def values(self, codes: np.ndarray) -> np.ndarray:
        """As `decode`, of whatever length they come out."""


@dataclass(frozen=True, eq=False)
class Float32(Code):
    """Nothing is lost: 4 bytes a number."""

    name: ClassVar[str] = "float32"
    width: int

    @property
    def dim(self) -> int:
        return self.width

    @property
    def bytes(self) -> int:
        return 4 * self.width

    def encode(self, z: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(z, dtype=np.float32).view(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.values(codes)

    def values(self, codes: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(codes).view(np.float32)


@dataclass(frozen=True, eq=False)
class Int8(Code):
    """1 byte a number: code = floor(255 (x - low) / (high - low)), and back the middle of what has that code.

    Numbers beyond the range are clipped.

    Args:
        ranges: (2, dim): the lowest and the highest value of each dimension.
    """

    name: ClassVar[str] = "int8"
    ranges: np.ndarray

    @classmethod
    def fitted(cls, z: np.ndarray) -> Self:
        """With the ranges of the vectors (N, dim)."""
        return cls(np.stack([z.min(axis=0), z.max(axis=0)]))

    @property
    def dim(self) -> int:
        return self.ranges.shape[1]

    @property
    def bytes(self) -> int:
        return self.dim

    @property
    def steps(self) -> np.ndarray:
        return (self.ranges[1] - self.ranges[0]) / 255

    def encode(self, z: np.ndarray) -> np.ndarray:
        steps = np.where(self.steps == 0, 1, self.steps)  # a dimension that is constant
        return np.clip(np.floor((z - self.ranges[0]) / steps), 0, 255).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        return self.ranges[0] + (codes + np.float32(0.5)) * self.steps


@dataclass(frozen=True, eq=False)
class Binary(Code):
    """1 bit a number: whether it is above 0. Back come 1 and -1, so that for two codes q · d = 1 - 2 Hamming / dim.

    Args:
        width: dim.
        codes_queries: Whether queries are bits, too.
    """

    name: ClassVar[str] = "binary"
    width: int
    codes_queries: bool = False

    @property
    def dim(self) -> int:
        return self.width

    @property
    def bytes(self) -> int:
        return -(-self.width // 8)

    def encode(self, z: np.ndarray) -> np.ndarray:
        return np.packbits(z > 0, axis=1)

    def values(self, codes: np.ndarray) -> np.ndarray:
        return np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) * 2 - 1


@dataclass(frozen=True, eq=False)
class PQ(Code):
    """A vector is cut into M parts, and of each part the number of the nearest of 256 centroids is kept: M bytes.

    Args:
        centroids: (M, 256, dim / M).
    """

    name: ClassVar[str] = "pq"
    centroids: np.ndarray

    @classmethod
    def fitted(cls, z: np.ndarray, parts: int, seed: int = 1) -> Self:
        """k-means on each part of the vectors (N, dim), N at least 256 and dim a multiple of `parts`."""
        quantizer = faiss.ProductQuantizer(z.shape[1], parts, PQ_BITS)
        quantizer.cp.seed = seed
        quantizer.cp.min_points_per_centroid = 1  # fewer than its 39 are no reason for a line on every part
        quantizer.train(np.ascontiguousarray(z, dtype=np.float32))
        return cls(faiss.vector_to_array(quantizer.centroids).reshape(parts, 2**PQ_BITS, -1))

    @property
    def dim(self) -> int:
        return self.centroids.shape[0] * self.centroids.shape[2]

    @property
    def bytes(self) -> int:
        return len(self.centroids)

    def encode(self, z: np.ndarray) -> np.ndarray:
        quantizer = faiss.ProductQuantizer(self.dim, self.bytes, PQ_BITS)
        faiss.copy_array_to_vector(self.centroids.ravel(), quantizer.centroids)
        return quantizer.compute_codes(np.ascontiguousarray(z, dtype=np.float32))

    def values(self, codes: np.ndarray) -> np.ndarray:
        return self.centroids[np.arange(self.bytes), codes].reshape(len(codes), self.dim)


def write(code: Code, folder: Path) -> None:
    """Add code.json and code.safetensors to a folder."""
    values = {field.name: getattr(code, field.name) for field in fields(code)}  # type: ignore[arg-type]
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "code.safetensors")
    node: dict[str, Any] = {"_target_": f"{type(code).__module__}.{type(code).__name__}"}
    node |= {name: value for name, value in values.items() if name not in arrays}
    (folder / "code.json").write_text(json.dumps(node, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Code:
    """What `write` has put into the folder.

    Raises:
        UsageError: code.json names something else than a code.
    """
    node = json.loads((folder / "code.json").read_text(encoding="utf-8"))
    check_targets(node, (Code,), folder / "code.json")
    code: Code = build(node, **load_file(folder / "code.safetensors"))
    return code
