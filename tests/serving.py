"""A model that needs no weights, and clients of an application in the same process."""

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families

from unitsphere.encoders.reader import Reader
from unitsphere.encoders.tiny import tiny
from unitsphere.model import Model


class Letters(Model):
    """Letters counted, of length one; a text with "!" in it makes it raise, one with "?" gives no numbers."""

    normalize = True
    device = torch.device("cpu")

    def __init__(self, prompts=None, max_length=128):
        encoder = tiny(max_length=max_length)
        self.encoder = Reader(encoder.tokenizer, max_length)
        self.dim, self.prompts, self.read = 26, prompts or {}, {}
        self.calls = []  # the texts of each
        self.threads = set()
        self.free = threading.Event()  # while it is not set, a call waits
        self.free.set()

    def through(self, passes, texts):
        raise NotImplementedError

    def protocol(self):
        return {}

    def identity(self):
        return "letters"

    def encode(self, texts, role=None, prompt=None, max_length=None, batch_tokens=None):
        self.calls.append([(prompt, text) for text in texts])
        self.threads.add(threading.get_ident())
        self.free.wait(10)
        if any("!" in text for text in texts):
            raise RuntimeError("letters only")
        out = np.array([self.vector(prompt + text) for text in texts])
        return np.where([["?" in text] for text in texts], np.nan, out).astype(np.float32)

    @staticmethod
    def vector(text):
        counts = np.array([text.count(chr(97 + i)) + 0.01 * (len(text) % (i + 2)) for i in range(26)]) + 1e-3
        return (counts / np.linalg.norm(counts)).astype(np.float32)


@asynccontextmanager
async def clients(app, **options):
    """An HTTP client of the running application."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://here", **options) as client,
    ):
        yield client


def answers(app, *requests, **options):
    """What the application answers to (path, json) one after the other."""

    async def ask():
        async with clients(app, **options) as client:
            return [await client.post(path, json=body) for path, body in requests]

    return asyncio.run(ask())


async def until(condition):
    """Let the others go on until it holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to hold")


async def held_up(model, client):
    """A request over which `Letters` sit until they are `free`."""
    model.free.clear()
    model.calls.clear()
    first = asyncio.create_task(client.post("/embed", json={"texts": ["first"]}))
    await until(lambda: model.calls)
    return first


async def queued(client, tokens):
    """Let the others go on until so many tokens wait for the model."""
    for _ in range(1000):
        if sample((await client.get("/metrics")).text, "queue_tokens", model="embedder") == tokens:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"never did {tokens} tokens wait")


def sample(page, name, **labels):
    """A number of a page of metrics."""
    values = [
        one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
        if one.name == f"unitsphere_{name}" and labels.items() <= one.labels.items()
    ]
    return sum(values)
