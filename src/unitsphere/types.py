"""The records that pass between encoder, pooling, loss, data and evaluation, and the contracts of the last four.

Frozen dataclasses without logic, and Protocols. B is a number of texts, T of tokens, D a width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """One tokenised text, special tokens included, and how many of its first tokens are its prompt's."""

    ids: np.ndarray
    prompt: int = 0


@dataclass(frozen=True)
class Tokens:
    """Padded token ids (B, T), their mask (B, T), 1 where there is a token, and the number (B) of leading tokens that
    are each row's prompt."""

    ids: Tensor
    mask: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class TokenStates:
    """What an encoder returns: last hidden states (B, T, D), the mask (B, T), and, where asked for, the states of all
    layers, the embedding layer first. Where a pooling must not read the prompt, the mask leaves it out, and `before`
    (B) counts the tokens left out."""

    hidden: Tensor
    mask: Tensor
    layers: tuple[Tensor, ...] | None = None
    before: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """N rows of training data, tokenised but not padded.

    A row has one anchor, at most one positive and any number of negatives; the M negatives of all rows stand in one
    list, and `negative_rows` (M) says whose each is. Texts are numbered, so that equal texts have equal numbers.
    Of several ranks, `tokens`, `texts` and `instructions` are this rank's rows; after gathering the rest is of all.
    """

    tokens: Mapping[str, Sequence[Text]]  # column -> its texts, N or, for "negative", M
    text_ids: Mapping[str, Tensor]  # column -> (N) or, for "negative", (M)
    negative_rows: Tensor
    row_ids: Tensor
    labels: Tensor | None = None
    scores: Tensor | None = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # without prompts
    # column -> what stands before each text instead of its role's prompt, or None; only where a row says so
    instructions: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`; token ids stay on the CPU until they are padded."""
        move = {
            name: value.to(device)
            for name in ("negative_rows", "row_ids", "labels", "scores")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, text_ids={k: v.to(device) for k, v in self.text_ids.items()}, **move)


class Passes(Protocol):
    """Runs a function over R texts, a padded chunk of texts at a time.

    The function gets the `Tokens` of r texts and their r rows of every further tensor, and returns (r, …); what comes
    out is (R, …) in the order given.
    """

    def __call__(self, texts: Sequence[Text], function: Callable[..., Tensor], *rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Embeddings:
    """What a loss reads: the vectors of a batch and the batch behind them; of several ranks, of all of them.

    `mine` are this rank's rows; a loss that reads tokens or texts reads those rows, through `passes`.
    """

    anchors: tuple[Tensor, ...]  # one (N, D) for each view
    positives: Tensor | None  # (N, D)
    negatives: Tensor | None  # (M, D)
    batch: Batch
    mine: slice = field(default_factory=lambda: slice(None))
    my_negatives: slice = field(default_factory=lambda: slice(None))
    passes: Passes | None = None


@dataclass(frozen=True)
class LossOutput:
    """The scalar to minimise, and its named parts for the curves."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, documents and graded judgments; a document is relevant where its grade is 1 or more."""

    name: str
    corpus: Mapping[str, str]  # document id -> text
    queries: Mapping[str, str]  # query id -> text
    qrels: Mapping[str, Mapping[str, int]]  # query id -> document id -> grade
    max_length: int | None = None  # tokens kept of its texts; None is the encoder's limit
    # (role, text) -> what is put before it instead of the role's prompt
    instructions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unanswerable: int = 0  # judged queries that were left out, as no document is relevant to them


@dataclass(frozen=True)
class Result:
    """What an evaluator returns.

    Attributes:
        metrics: `task/measure` -> raw value (0.7888, not 78.88), in the order in which a table shows them.
        primary: The one metric that stands for the evaluator.
        items: Task -> one row a query or pair, with gold, prediction or measures.
        protocol: What must be equal before two such results may be compared.
    """

    metrics: Mapping[str, float]
    primary: str
    items: Mapping[str, pd.DataFrame]
    protocol: Mapping[str, Any]


class Pooler(Protocol):
    """Token states to one vector a text: (B, D')."""

    dim: int
    needs_layers: bool

    def __call__(self, states: TokenStates) -> Tensor: ...


class Loss(Protocol):
    """Arithmetic on the vectors of a batch.

    `needs` names the columns it reads, `optional` those it reads where the data has them; `views` says how often an
    anchor passes the encoder, `embeds` whether what it trains is meant to embed texts. `attach` is called once, before
    training, with the embedder: there it loads or makes the networks of its own, which the constructor does not.
    """

    needs: tuple[str, ...]
    optional: tuple[str, ...]
    views: int
    embeds: bool

    def attach(self, embedder: Any) -> None: ...

    def __call__(self, embeddings: Embeddings) -> LossOutput: ...


class Embed(Protocol):
    """Texts to vectors (B, D), float32. `role` is "query", "document" or, where texts are compared with their own kind
    or a probe reads them, "symmetric": it selects the prompt ("symmetric" the query's, as E5 does) and whether a vector
    is one that is stored, which those of queries are not. `prompt` replaces the prompt; `max_length` cuts to fewer
    tokens than the encoder could read."""

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray: ...


# Set -> what of it must not be trained on. A text must not be a row's anchor or positive; the texts of a tuple must not
# stand in one row together (the two sentences of a pair, whose score would be given away), though each may alone.
Held = Mapping[str, Sequence[str | tuple[str, ...]]]


class Evaluator(Protocol):
    """Scores an embedding function; never sees the model behind it."""

    def __call__(self, embed: Embed) -> Result: ...

    def held(self) -> Held:
        """What `data.leakage` looks for in the training rows."""
        ...
