"""The endpoints.

What an answer's form, which is somebody else's, has no place for stands in its headers: X-Tokens, X-Truncated-Texts
and, of /rerank, X-Scored-By.

Code: /embed and /rerank answer as https://github.com/huggingface/text-embeddings-inference, /v1/embeddings as OpenAI.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from scipy.special import expit
from starlette.responses import Response

from unitsphere.model import Model
from unitsphere.serving.engine import Answer, Engine, Reranker
from unitsphere.serving.gate import Door, Gate
from unitsphere.serving.metrics import Metrics, Observed
from unitsphere.serving.refusal import Refused, handle_refusals
from unitsphere.serving.schemas import EmbedRequest, OpenAIRequest, RerankRequest
from unitsphere.serving.settings import Settings

ENDPOINTS = frozenset({"/embed", "/v1/embeddings", "/v1/models", "/rerank", "/health", "/metrics"})


def create_app(
    model: Model, reranker: Reranker | None = None, settings: Settings | None = None, door: Door | None = None
) -> FastAPI:
    """The service as an ASGI application, whose lifespan holds the threads that compute.

    Args:
        model: In the mode of evaluation, on its device.
        reranker: A cross-encoder; None reranks by the model's cosine.
        settings: None is the defaults.
        door: By which whoever runs the application lets it drain.
    """
    settings, door, metrics = settings or Settings(), door or Door(), Metrics()
    engine = Engine(model, reranker, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield

    app = FastAPI(title="unitsphere", description=f"Text embeddings by {settings.name}.", lifespan=lifespan)
    handle_refusals(app)
    app.add_middleware(Gate, door=door, settings=settings)
    app.add_middleware(Observed, metrics=metrics, endpoints=ENDPOINTS)  # outside the gate: counts what it refuses

    async def asked(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
        answer = await _unless_gone(request, work)
        endpoint = request.url.path
        metrics.tokens.labels(endpoint).inc(answer.tokens)
        metrics.texts.labels(endpoint).inc(len(answer.values))
        metrics.truncated.labels(endpoint).inc(answer.cut)
        return answer

    @app.post("/embed", response_model=list[list[float]])
    async def embed(body: EmbedRequest, request: Request) -> Response:
        """One vector a text, in their order."""
        width = _width(body.dimensions, model)
        if body.normalize is False and model.normalize:
            raise Refused(400, "normalize: this model's vectors have length one and no other", "normalize")
        answer = await asked(request, engine.embed(body.texts, body.role, body.prompt, body.truncate))
        return _json(_shaped(answer.values, width, model, body.normalize).tolist(), answer)

    @app.post("/v1/embeddings")
    async def openai(body: OpenAIRequest, request: Request) -> Response:
        """As OpenAI's endpoint of this name."""
        if body.model != settings.name:
            raise Refused(404, f"the model served here is {settings.name!r}", "model", "model_not_found")
        if not body.input:
            raise Refused(400, "input: at least one text", "input")
        width = _width(body.dimensions, model)
        answer = await asked(request, engine.embed(body.input, body.role, body.prompt, field="input"))
        vectors = _shaped(answer.values, width, model)
        shown = _base64(vectors) if body.encoding_format == "base64" else vectors.tolist()
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        return _json({"object": "list", "data": data, "model": settings.name, "usage": usage}, answer)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model, in OpenAI's list."""
        one = {"id": settings.name, "object": "model", "created": 0, "owned_by": "unitsphere"}
        return {"object": "list", "data": [one]}

    @app.post("/rerank")
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Index and score of each text, best first, equal ones in their order."""
        if not body.texts:
            return Response(b"[]", media_type="application/json")
        answer = await asked(request, engine.rerank(body.query, body.texts, body.truncate))
        scores = answer.values
        if reranker is not None and not body.raw_scores:
            scores = expit(scores)
        order = np.argsort(-answer.values, kind="stable")[: body.top_n].tolist()
        ranked: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
        if body.return_texts:
            for one in ranked:
                one["text"] = body.texts[one["index"]]
        scored_by = "cosine" if reranker is None else "cross-encoder"
        return _json(ranked, answer, {"X-Scored-By": scored_by})

    @app.get("/health")
    async def health() -> Response:
        """What is served; status 503 once the server drains."""
        about = {
            "status": "draining" if door.draining else "ready",
            "model": settings.name,
            "dim": model.dim,
            "max_length": engine.reader.limit(),
            "prompts": model.prompts,
            "reranks_by": "cosine" if reranker is None else "cross-encoder",
        }
        return Response(to_json(about), 503 if door.draining else 200, media_type="application/json")

    @app.get("/metrics")
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's answer; it is cancelled where the client leaves first, and nobody reads what is raised then."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_departure(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client left")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _width(dimensions: int | None, model: Model) -> int:
    if dimensions is not None and dimensions > model.dim:
        raise Refused(400, f"dimensions={dimensions}: this model's vectors have {model.dim}", "dimensions")
    return dimensions or model.dim


def _shaped(vectors: np.ndarray, width: int, model: Model, normalize: bool | None = None) -> np.ndarray:
    """The first numbers (N, width) of vectors (N, dim); of length one where the whole ones are, or as asked."""
    short = vectors[:, :width]
    as_it_is = width == model.dim if model.normalize else not normalize
    return short if as_it_is else short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


def _base64(vectors: np.ndarray) -> list[str]:
    """Each row as little-endian float32."""
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]


def _json(value: Any, answer: Answer, headers: dict[str, str] | None = None) -> Response:
    said = {"X-Tokens": str(answer.tokens), "X-Truncated-Texts": str(answer.cut)}
    return Response(to_json(value), headers=said | (headers or {}), media_type="application/json")
