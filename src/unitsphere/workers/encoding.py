"""What a worker does, and what workers are: some process, or several, that turn texts into vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from unitsphere import artefact
from unitsphere.errors import UsageError
from unitsphere.model import Model


@dataclass(frozen=True)
class Encoded:
    """Vectors (n, D) of some texts, and tokens kept -> how many of the texts were cut to them."""

    vectors: np.ndarray
    cut: dict[int, int]


class Encoding:
    """Texts to vectors by a model on disk. Another process gets the settings, and loads the model where it is.

    Args:
        path: A run folder, a model folder or a hub id.
        role: As for `Model.encode`.
        max_length: Likewise.
        identity: What the model has to be; None is whatever is there.
    """

    def __init__(self, path: str, role: str, max_length: int | None = None, identity: str | None = None):
        self.path, self.role, self.max_length, self.identity = path, role, max_length, identity

    def __reduce__(self) -> Any:
        return Encoding, (self.path, self.role, self.max_length, self.model.identity())

    @cached_property
    def model(self) -> Model:
        """
        Raises:
            UsageError: Nothing loadable is there, or another model than it has to be.
        """
        model = artefact.load(self.path)
        if self.identity not in (None, model.identity()):
            raise UsageError(f"model={self.path} is not in every place the same: a worker has found another one there.")
        return model

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The vectors of some texts, batched among themselves: equal texts and threads give equal vectors."""
        model = self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        with model.counting() as read:
            vectors = model.encode(texts, self.role, max_length=self.max_length)
        return Encoded(vectors, {limit: cut for (_, limit), (_, cut) in read.items() if cut})


class Workers(Protocol):
    """Encodes blocks of texts, which are taken one after another as there is somebody free, and gives the vectors of
    each with its number, in whatever order they are done."""

    def __call__(
        self, encoding: Encoding, blocks: Iterator[tuple[int, Sequence[str]]]
    ) -> Iterator[tuple[int, Encoded]]: ...
