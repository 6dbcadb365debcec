"""What GET /metrics says, in Prometheus's form.

Code: https://github.com/prometheus/client_python
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """One server's counters, in a registry of their own, so that a process may hold several servers."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"unitsphere_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"unitsphere_{name}", what, labels, registry=registry, buckets=buckets)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"unitsphere_{name}", what, labels, registry=registry)

        self.requests = counter("requests_total", "Requests answered.", "endpoint", "status")
        self.seconds = histogram("request_seconds", "From a request's head to its answer.", SECONDS, "endpoint")
        self.texts = counter("texts_total", "Texts, or pairs to rerank, that requests asked for.", "endpoint")
        self.tokens = counter("tokens_total", "Tokens of them, as read by the model.", "endpoint")
        self.truncated = counter("truncated_texts_total", "Texts that lost their end.", "endpoint")
        self.hits = counter("cache_hits_total", "Texts whose vectors were kept.")
        self.misses = counter("cache_misses_total", "Texts whose vectors were not.")
        self.cache_bytes = gauge("cache_bytes", "Kept vectors and their texts.")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait for the model.", "model")
        self.batch_texts = histogram("batch_texts", "Different texts computed together.", SIZES, "model")
        self.batch_tokens = histogram("batch_tokens", "Tokens computed together.", TOKENS, "model")
        self.batch_seconds = histogram("batch_seconds", "That a batch took.", SECONDS, "model")

    def batch(self, model: str) -> Callable[[int, int, float], None]:
        """What a `Batcher` before this model tells its batches."""

        def observe(texts: int, tokens: int, seconds: float) -> None:
            self.batch_texts.labels(model).observe(texts)
            self.batch_tokens.labels(model).observe(tokens)
            self.batch_seconds.labels(model).observe(seconds)

        return observe

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Observed:
    """ASGI middleware: counts and times requests. Paths that are no endpoint share one name."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: frozenset[str]):
        self.app, self.metrics, self.endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
        status, start = 500, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)
