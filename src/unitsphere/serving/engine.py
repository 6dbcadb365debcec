"""Texts to vectors and pairs to scores, for many requests at once: tokens are counted, known vectors taken from the
cache, the rest queued before the model.

One thread computes, or lets others compute for it. Another one tokenises to count, with a tokenizer of its own and a
text at a time, so that neither a long text nor a long request keeps the event loop from answering others.
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from unitsphere.encoders.reader import Reader
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.serving.batching import Batcher
from unitsphere.serving.cache import Cache, Embedded, Key
from unitsphere.serving.metrics import Metrics
from unitsphere.serving.refusal import Refused
from unitsphere.serving.settings import Settings

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Pair = tuple[str, str]


class Reranker(Protocol):
    """Scores R pairs (query, text): (R, 1), any numbers, larger is better. See encoders/cross_encoder.py."""

    tokenizer: Any
    max_length: int

    def __call__(self, pairs: Sequence[Pair]) -> np.ndarray: ...


class Read(NamedTuple):
    """What the model reads of a text, or of a pair: how many tokens, and whether its end is lost."""

    tokens: int
    cut: bool


class Answer(NamedTuple):
    """Vectors (N, dim), or scores (N), with the tokens that were read for them and how many texts lost their end."""

    values: np.ndarray
    tokens: int
    cut: int


class Engine:
    """The two models, what stands before them, and what is counted.

    Args:
        model: Asked by one thread only, from now on.
        reranker: A cross-encoder; None reranks by the cosine of the model's vectors.
        settings: See there.
        metrics: Told of batches, and asks for the length of the queues.

    Raises:
        UsageError: The model has no prompt for the role of the settings.
    """

    def __init__(self, model: Model, reranker: Reranker | None, settings: Settings, metrics: Metrics):
        self.model, self.reranker, self.settings, self.metrics = model, reranker, settings, metrics
        self.roles = dict.fromkeys(("query", "document", "symmetric", *model.prompts))
        if settings.role not in (None, *self.roles):
            raise UsageError(f"role={settings.role}: this model knows {', '.join(self.roles)}")
        self.reader = Reader(copy.deepcopy(model.encoder.tokenizer), model.encoder.max_length)
        self.reader.in_windows = model.encoder.in_windows
        self.pair_tokenizer: Any = copy.deepcopy(reranker.tokenizer) if reranker is not None else None
        self.cache = Cache(int(settings.cache_mib * 2**20))
        self.computing = ThreadPoolExecutor(1, "computing")
        self.counting = ThreadPoolExecutor(1, "counting")

        self.embedding = self._batcher("embedder", self._encode)
        self.scoring = self._batcher("reranker", self._score)
        metrics.cache_bytes.set_function(lambda: self.cache.bytes)

    def _batcher(self, name: str, compute: Callable[[Sequence[K]], Mapping[K, V]]) -> Batcher[K, V]:
        settings = self.settings
        limits = settings.batch_tokens, settings.wait_ms / 1000, settings.limits.queue_tokens
        made = Batcher(compute, self.computing, *limits, observe=self.metrics.batch(name))
        self.metrics.queue_tokens.labels(name).set_function(lambda: made.tokens)
        return made

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it is open, requests are answered."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.computing, self._encode, [Key(None, "", "a first pass is a slow one")])
        workers = [asyncio.create_task(batcher.run()) for batcher in (self.embedding, self.scoring)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            for thread in (self.counting, self.computing):
                thread.shutdown(cancel_futures=True)

    async def embed(
        self,
        texts: Sequence[str],
        role: str | None = None,
        prompt: str | None = None,
        cut: bool | None = None,
        field: str = "texts",
    ) -> Answer:
        """Vectors (N, dim) float32 of texts in their order; equal ones are computed once.

        Args:
            texts: As many as the limits allow.
            role: As of `Model.encode`; None is the server's.
            prompt: Put before each, instead of the role's.
            cut: Whether those that are too long are cut; None is as the settings say.
            field: Of the request that has them.

        Raises:
            Refused: By a limit, or for a role that the model does not know.
            QueueFull, BatchFailed: See `Batcher`.
        """
        role = self.settings.role if role is None else role
        if role not in (None, *self.roles):
            raise Refused(400, f"role: this model knows {', '.join(self.roles)}", "role", "unknown_role")
        prompt = self.model.prompt_of(role) if prompt is None else prompt
        self._check(texts, prompt, field)
        return await self._embed(texts, role, prompt, cut, field)

    async def _embed(
        self, texts: Sequence[str], role: str | None, prompt: str, cut: bool | None, field: str = "texts"
    ) -> Answer:
        """Of texts that were checked; `field` of the request has them."""
        keys = [Key(role, prompt, text) for text in texts]
        known = {key: entry for key in dict.fromkeys(keys) if (entry := self.cache.get(key)) is not None}
        new = [key for key in dict.fromkeys(keys) if key not in known]
        self.metrics.hits.inc(len(known))
        self.metrics.misses.inc(len(new))
        read = await self._read(self.embedding, self._count, new)
        self._refuse_long([(known.get(key) or read[key]).cut for key in keys], self.reader.limit(), cut, field)
        for key, vector in (await self.embedding({key: of.tokens for key, of in read.items()})).items():
            known[key] = Embedded(vector, *read[key])
            self.cache.put(key, known[key])
        entries = [known[key] for key in keys]
        values = np.stack([entry.vector for entry in entries]) if entries else np.empty((0, self.model.dim), np.float32)
        return Answer(values, sum(entry.tokens for entry in entries), sum(entry.cut for entry in entries))

    async def rerank(self, query: str, texts: Sequence[str], cut: bool | None = None) -> Answer:
        """Scores (N) of texts for a query, larger is better: the cross-encoder's, else cosines in [-1, 1].

        Raises:
            As `embed`.
        """
        asking, answering = ("", "") if self.reranker is not None else map(self.model.prompt_of, ("query", "document"))
        self._check([query], asking, "query")
        self._check(texts, answering)
        if self.reranker is None:
            one = await self._embed([query], "query", asking, cut, "query")
            many = await self._embed(texts, "document", answering, cut)
            lengths = np.linalg.norm(one.values) * np.linalg.norm(many.values, axis=1)  # (N)
            dots = (many.values * one.values).sum(axis=1)  # not a product of matrices: equal texts have equal scores
            cosines = dots / np.maximum(lengths, 1e-12)
            return Answer(cosines, one.tokens + many.tokens, one.cut + many.cut)
        pairs = [(query, text) for text in texts]
        read = await self._read(self.scoring, self._count_pair, list(dict.fromkeys(pairs)))
        cuts = [read[pair].cut for pair in pairs]
        self._refuse_long(cuts, self.reranker.max_length, cut)
        found = await self.scoring({pair: of.tokens for pair, of in read.items()})
        values = np.array([found[pair] for pair in pairs], np.float32)
        return Answer(values, sum(read[pair].tokens for pair in pairs), sum(cuts))

    def _check(self, texts: Sequence[str], prompt: str, field: str = "texts") -> None:
        limits = self.settings.limits
        if len(texts) > limits.texts:
            raise Refused(413, f"{len(texts)} texts, and {limits.texts} are taken at once (limits.texts)", field)
        for i, text in enumerate(texts):
            if len(prompt) + len(text) > limits.characters:
                own = f"has {len(text)} characters" + f" and its prompt {len(prompt)}" * bool(prompt)
                said = f"{own}, and {limits.characters} are read (limits.characters)"
                raise _too_long(field, i, said)

    def _refuse_long(self, cuts: Sequence[bool], limit: int | None, cut: bool | None, field: str = "texts") -> None:
        if any(cuts) and not (self.settings.on_long == "cut" if cut is None else cut):
            said = f"has more than the {limit} tokens that the model reads"
            raise _too_long(field, list(cuts).index(True), said)

    async def _read(self, batcher: Batcher[K, V], count: Callable[[K], Read], keys: Sequence[K]) -> dict[K, Read]:
        loop, read = asyncio.get_running_loop(), {}
        for key in keys:
            batcher.check_room()  # rather than do the rest of the work
            read[key] = await loop.run_in_executor(self.counting, count, key)
        return read

    def _count(self, key: Key) -> Read:
        (ids,), cut = self.reader.cut([key.prompt + key.text])
        return Read(len(ids), cut == 1)

    def _count_pair(self, pair: Pair) -> Read:
        assert self.reranker is not None
        tokens = self.pair_tokenizer(*([text] for text in pair), return_attention_mask=False, verbose=False)
        length, limit = len(tokens["input_ids"][0]), self.reranker.max_length
        return Read(min(length, limit), length > limit)

    def _encode(self, keys: Sequence[Key]) -> dict[Key, np.ndarray]:
        found: dict[Key, np.ndarray] = {}
        for role, prompt in dict.fromkeys((key.role, key.prompt) for key in keys):
            some = [key for key in keys if (key.role, key.prompt) == (role, prompt)]
            texts = [key.text for key in some]
            vectors = self.model.encode(texts, role, prompt)
            found.update(_finite(some, vectors))
        return found

    def _score(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        assert self.reranker is not None
        return {pair: float(score) for pair, (score,) in _finite(pairs, self.reranker(pairs)).items()}


def _finite(keys: Sequence[K], rows: np.ndarray) -> dict[K, np.ndarray]:
    """The keys whose rows (N, n) are numbers; a `Batcher` fails the requests of the others."""
    fine = np.isfinite(rows).all(axis=1)
    return {key: row for key, row, is_fine in zip(keys, rows, fine, strict=True) if is_fine}


def _too_long(field: str, number: int, said: str) -> Refused:
    return Refused(413, f"{'the query' if field == 'query' else f'text {number}'} {said}", field, "text_too_long")
