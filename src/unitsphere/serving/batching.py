"""Texts of many requests, computed together.

A batch is what waits when the model becomes free, up to a number of tokens; an idle model may wait a little for more.
Requests take turns, text by text, so that a thousand texts of one do not hold up the single text of another.

Code: the budget in tokens is that of https://github.com/huggingface/text-embeddings-inference, the delay that of
Triton's dynamic batcher.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
log = logging.getLogger(__name__)


class QueueFull(Exception):
    """Too much waits already; `seconds` is about how long until it does no more."""

    def __init__(self, seconds: int):
        super().__init__(seconds)
        self.seconds = seconds


class BatchFailed(Exception):
    """The model raised an exception over a batch that this request had a part in, or gave no value for a key of it."""


@dataclass(eq=False)
class _Request(Generic[K, V]):
    left: deque[tuple[K, int]]
    size: int
    since: float
    answer: asyncio.Future[dict[K, V]]
    found: dict[K, V] = field(default_factory=dict)


class Batcher(Generic[K, V]):
    """A queue before a model. Everything but `compute` happens in the event loop.

    Args:
        compute: Different keys to their values; called in `thread`, one batch at a time. A key that it leaves out fails
            the requests that wait for it, and no others.
        thread: Its only worker is the only one that asks the model.
        batch_tokens: At which a batch is full; one longer key is a batch of its own.
        wait: Seconds that an idle model waits for a batch to fill, counted from its oldest request.
        limit: Tokens waiting from which on requests are refused.
        observe: Told of each batch: keys, tokens, seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[K]], Mapping[K, V]],
        thread: Executor,
        batch_tokens: int,
        wait: float,
        limit: int,
        observe: Callable[[int, int, float], None],
    ):
        self.compute, self.thread, self.observe = compute, thread, observe
        self.batch_tokens, self.wait, self.limit = batch_tokens, wait, limit
        self.waiting: deque[_Request[K, V]] = deque()  # those with keys left, whose turn is first standing first
        self.tokens = 0  # of the keys left
        self.speed = math.inf  # tokens a second, of the last batch
        self.arrival = asyncio.Event()

    def check_room(self) -> None:
        """Raises:
        QueueFull: A request that came now would be refused.
        """
        if self.tokens >= self.limit:
            raise QueueFull(max(1, math.ceil(self.tokens / self.speed)))

    async def __call__(self, work: Mapping[K, int]) -> dict[K, V]:
        """The values of keys, given with their tokens. Cancelling it takes its keys out of the queue.

        Raises:
            QueueFull: Nothing of it was computed.
            BatchFailed: The model failed on part of it; the rest is not computed.
        """
        if not work:
            return {}
        self.check_room()
        loop = asyncio.get_running_loop()
        request: _Request[K, V] = _Request(deque(work.items()), len(work), loop.time(), loop.create_future())
        self.waiting.append(request)
        self.tokens += sum(work.values())
        self.arrival.set()
        try:
            return await request.answer
        finally:
            self._forget(request)

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filled()
            batch, tokens = self._take()
            keys, start = list(dict.fromkeys(key for _, key in batch)), loop.time()
            try:
                values = await loop.run_in_executor(self.thread, self.compute, keys)
            except Exception:
                log.exception("a batch of %d failed", len(keys))
                for request, _ in batch:
                    self._fail(request)
                continue
            seconds = loop.time() - start
            self.speed = tokens / max(seconds, 1e-6)
            self.observe(len(keys), tokens, seconds)
            if len(values) < len(keys):
                log.error("%d of a batch of %d have no finite value", len(keys) - len(values), len(keys))
            for request, key in batch:
                if key not in values:
                    self._fail(request)
                    continue
                request.found[key] = values[key]
                if len(request.found) == request.size and not request.answer.done():
                    request.answer.set_result(request.found)

    async def _filled(self) -> None:
        """Until something waits, and then until a batch is full or the oldest request has waited long enough."""
        loop = asyncio.get_running_loop()
        while True:
            until = min(request.since for request in self.waiting) + self.wait if self.waiting else None
            if until is not None and (self.tokens >= self.batch_tokens or until <= loop.time()):
                return
            self.arrival.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self.arrival.wait()

    def _take(self) -> tuple[list[tuple[_Request[K, V], K]], int]:
        batch: list[tuple[_Request[K, V], K]] = []
        tokens = 0
        while self.waiting:
            request = self.waiting[0]
            key, size = request.left[0]
            if batch and tokens + size > self.batch_tokens:
                break
            self.waiting.popleft()
            request.left.popleft()
            if request.left:
                self.waiting.append(request)
            batch.append((request, key))
            tokens += size
        self.tokens -= tokens
        return batch, tokens

    def _fail(self, request: _Request[K, V]) -> None:
        self._forget(request)
        if not request.answer.done():
            request.answer.set_exception(BatchFailed())

    def _forget(self, request: _Request[K, V]) -> None:
        if request.left:
            self.waiting.remove(request)
            self.tokens -= sum(tokens for _, tokens in request.left)
            request.left.clear()
