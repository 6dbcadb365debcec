"""A model whose vectors are kept small: fewer numbers, fewer bytes a number, or both.

    inner/                                   the model that makes the vectors, as `artefact.save` writes it
    maps.safetensors                         the linear maps, in their order
    code.json, code.safetensors              how the numbers become bytes (see `search.codes`)
    unitsphere.yaml                          the maps' names, and that `load` reads the folder

What is stored is what is measured: a document's vector is the one that its code stands for, so that every evaluator
sees what a user of the codes gets. A query passes the maps alone, as nobody stores it, unless the code is for queries
too. Texts that are compared with their own kind (STS, probes: the role "symmetric") all pass the code.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file, save_file
from torch import Tensor

from unitsphere import artefact
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.search import codes
from unitsphere.search.codes import Code, Float32
from unitsphere.search.linear import LinearMap
from unitsphere.types import Passes, Text


class Coded(Model):
    """vector = normalised, through the maps in order; stored = code(vector). Vectors have length one, so that dot
    product is cosine.

    Args:
        inner: What embeds.
        maps: Applied in order; none leaves the vectors as they are.
        code: Of what the last map returns; None keeps 32-bit numbers.
    """

    def __init__(self, inner: Model, maps: Sequence[LinearMap] = (), code: Code | None = None):
        self.inner, self.maps = inner, list(maps)
        self.encoder, self.prompts, self.normalize = inner.encoder, inner.prompts, True
        self.default_prompt = inner.default_prompt
        self.dim = self.maps[-1].dim if self.maps else inner.dim
        self.code = code or Float32(self.dim)

    @classmethod
    def of(cls, model: Model) -> "Coded":
        """The model itself if it is one, else around it, with no maps and 32-bit numbers."""
        return model if isinstance(model, Coded) else cls(model)

    def mapped(self, by: LinearMap) -> "Coded":
        """The same model with one more map.

        Raises:
            UsageError: Its vectors are coded already.
        """
        self._check_float(by.name)
        return Coded(self.inner, [*self.maps, by])

    def stored_as(self, code: Code) -> "Coded":
        """The same model with its vectors in that code.

        Raises:
            UsageError: They are coded already.
        """
        self._check_float(code.name)
        return Coded(self.inner, self.maps, code)

    def _check_float(self, what: str) -> None:
        if not isinstance(self.code, Float32):
            raise UsageError(
                f"compression: {what} reads numbers, and this model's vectors are {self.code.name} already."
            )

    @property
    def vector_bytes(self) -> int:
        return self.code.bytes

    @property
    def read(self) -> dict[tuple[str, int], tuple[int, int]]:
        return self.inner.read

    @read.setter
    def read(self, counts: dict[tuple[str, int], tuple[int, int]]) -> None:
        self.inner.read = counts

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def to(self, device: torch.device | str) -> Self:
        self.inner.to(device)
        return self

    def floats(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> np.ndarray:
        """As `encode`, before the code: (R, dim) float32."""
        return self._mapped(self.inner.encode(texts, *args, **kwargs))

    def encode_codes(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> np.ndarray:
        """As `encode`, what is stored: (R, vector_bytes) uint8."""
        return self.code.encode(self.floats(texts, *args, **kwargs))

    def stream(self, texts: Iterable[str], role: str | None = None, *args: Any, **kwargs: Any) -> Iterator[np.ndarray]:
        """As `Model.stream`; what the codes say, but for queries, which have their own numbers where the code leaves
        them those."""
        for z in map(self._mapped, self.inner.stream(texts, role, *args, **kwargs)):
            yield z if role == "query" and not self.code.codes_queries else self.code.decode(self.code.encode(z))

    def through(self, passes: Passes, texts: Sequence[Text]) -> Tensor:
        """Vectors before the code."""
        z = self.inner.through(passes, texts)
        return torch.from_numpy(self._mapped(z.cpu().numpy())).to(z.device)

    def _mapped(self, z: np.ndarray) -> np.ndarray:
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        for by in self.maps:
            z = by(z)
        return z

    def protocol(self) -> dict[str, Any]:
        kept = [*(by.name for by in self.maps), self.code.name + ", queries too" * self.code.codes_queries]
        return {**self.inner.protocol(), "normalize": True, "vectors": kept}

    def identity(self) -> str:
        arrays = [array for by in self.maps for array in (by.matrix, by.shift)]
        values = [getattr(self.code, field.name) for field in fields(self.code)]  # type: ignore[arg-type]
        arrays += [value for value in values if isinstance(value, np.ndarray)]
        total = hashlib.sha256(repr((self.inner.identity(), self.protocol()["vectors"])).encode())
        for array in arrays:
            total.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def write(self, folder: Path) -> None:
        artefact.save(self.inner, folder / "inner")
        arrays = {f"{i}.{part}": getattr(by, part) for i, by in enumerate(self.maps) for part in ("matrix", "shift")}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "maps.safetensors")
        codes.write(self.code, folder)
        settings = {"load": "unitsphere.coded.load", "maps": [by.name for by in self.maps]}
        OmegaConf.save(OmegaConf.create(settings), folder / "unitsphere.yaml")


def load(folder: Path) -> Coded:
    """What `Coded.write` has written."""
    arrays = load_file(folder / "maps.safetensors")
    names = OmegaConf.load(folder / "unitsphere.yaml").maps
    maps = [LinearMap(name, arrays[f"{i}.matrix"], arrays[f"{i}.shift"]) for i, name in enumerate(names)]
    return Coded(artefact.load(folder / "inner"), maps, codes.read(folder))
