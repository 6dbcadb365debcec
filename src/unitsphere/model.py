"""Texts to vectors, whatever computes them: torch weights, an ONNX graph, a table of tokens, codes of vectors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from unitsphere.encoders.reader import Reader, longest_first, pass_tokens
from unitsphere.types import Passes, Text, Tokens

BLOCK = 16384  # texts that are sorted by length together


class Model(ABC):
    """What evaluation, mining, compression, search and serving call.

    Attributes:
        encoder: Its tokenizer and longest input.
        dim: Width of a vector.
        normalize: Whether vectors have length one.
        prompts: Name -> text put before every text of that role ("query", "document") or of that name. Of the role
            "symmetric" (see `types.Embed`) it is the query's.
        default_prompt: The name of the one that is put before texts without a role; None puts nothing there.
        read: See `counting`.
    """

    encoder: Reader
    dim: int
    normalize: bool
    prompts: dict[str, str]
    default_prompt: str | None = None
    read: dict[tuple[str, int], tuple[int, int]]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where padded tokens are moved to."""

    @abstractmethod
    def through(self, passes: Passes, texts: Sequence[Text]) -> Tensor:
        """Whole texts, of any length where there are windows, to vectors (R, dim)."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What of this model must be equal before two scores may be compared."""

    @abstractmethod
    def identity(self) -> str:
        """SHA-256 over all that decides its vectors."""

    @property
    def vector_bytes(self) -> int:
        """Of one vector where it is stored."""
        return 4 * self.dim

    @property
    def pass_tokens(self) -> int:
        """Padded tokens a forward pass, where nothing else is asked for."""
        return pass_tokens(self.device)

    def each(self, compute: Callable[[np.ndarray], None], passes: Sequence[np.ndarray]) -> None:
        """Carry the passes out, one after another or several at a time."""
        for some in passes:
            compute(some)

    def to(self, device: torch.device | str) -> Self:
        """The same model, from now on computing there; one that is bound to a place stays in it."""
        return self

    def write(self, folder: Path) -> None:
        """Fill a new folder. Its unitsphere.yaml holds `load: dotted.name` of a function, one of `artefact.LOADERS`,
        that makes the model again from `folder=`. (An `Embedder` is written by `artefact.save`.)"""
        raise NotImplementedError(f"{type(self).__name__}.write")

    def prompt_of(self, role: str | None) -> str:
        """What is put before texts of a role; "" for nothing."""
        return self.prompts.get("query" if role == "symmetric" else role or self.default_prompt or "", "")

    def encode(
        self,
        texts: Sequence[str],
        role: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: Any number of texts; equal texts are computed once.
            role: A name in `prompts`, e.g. "query" or "document", or "symmetric": selects the prompt; None is
                `default_prompt`.
            prompt: Used instead of a named prompt.
            max_length: In tokens; None is the encoder's limit, and with windows none.
            batch_tokens: Padded tokens a forward pass, of which a CPU computes several at once; None is `pass_tokens`.

        Returns:
            (len(texts), dim) float32, in the order given.
        """
        unique = list(dict.fromkeys(texts))
        parts = list(self.stream(unique, role, prompt, max_length, batch_tokens))
        out = np.concatenate(parts) if parts else np.empty((0, self.dim), dtype=np.float32)
        position = {text: i for i, text in enumerate(unique)}
        return out[[position[text] for text in texts]] if len(unique) < len(texts) else out

    @torch.no_grad()
    def stream(
        self,
        texts: Iterable[str],
        role: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Embed texts without end, in memory that does not grow: while a block of them is computed, longest first, the
        next one is tokenised.

        Args:
            texts, role, prompt, max_length, batch_tokens: As for `encode`; equal texts are computed as often as they
                come.

        Yields:
            (n, dim) float32 of the next n texts, `BLOCK` but for the last.
        """
        if prompt is None:
            prompt = self.prompt_of(role)
        before, length = prompt, self.encoder.prompt_length(prompt)
        budget = batch_tokens or self.pass_tokens

        def read(block: Sequence[str]) -> list[Text]:
            ids, cut = self.encoder.cut([before + text for text in block], max_length)
            self._count(role or "text", self.encoder.limit(max_length), len(block), cut)
            return [Text(of_text, length) for of_text in ids]

        def passes(texts: Sequence[Text], function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
            vectors = torch.empty(len(texts), self.dim, dtype=torch.float32)

            def compute(some: np.ndarray) -> None:
                tokens = self.encoder.pad([texts[i] for i in some])
                moved = Tokens(*(x.to(self.device) for x in (tokens.ids, tokens.mask, tokens.prompt)))
                vectors[some] = function(moved).to(vectors)

            divided = list(longest_first([len(text.ids) for text in texts], budget))
            self.each(compute, divided)
            return vectors

        source = iter(texts)
        blocks = iter(lambda: list(islice(source, BLOCK)), [])
        first = next(blocks, None)
        if first is None:
            return
        now = read(first)
        with ThreadPoolExecutor(1) as reader:
            for block in blocks:
                coming = reader.submit(read, block)
                yield self.through(passes, now).cpu().numpy()
                now = coming.result()
        yield self.through(passes, now).cpu().numpy()

    def embed(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """`encode` in the form that evaluators call (see `types.Embed`)."""
        return self.encode(texts, role=role, prompt=prompt, max_length=max_length)

    @contextmanager
    def counting(self) -> Iterator[dict[tuple[str, int], tuple[int, int]]]:
        """While it is open: (role, tokens kept) -> how many texts `encode` has read, and how many of them it cut."""
        self.read = {}
        yield self.read

    def _count(self, role: str, limit: int | None, texts: int, cut: int) -> None:
        if limit is not None:
            before = self.read.get((role, limit), (0, 0))
            self.read[role, limit] = before[0] + texts, before[1] + cut
