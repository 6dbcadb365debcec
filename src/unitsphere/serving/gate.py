"""What a request passes before its body is read: is the server still taking any, does it bear the key, is it too big.

Relations: batching.py and engine.py refuse by what is in the body.
"""

from dataclasses import dataclass
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unitsphere.serving.refusal import Refused
from unitsphere.serving.settings import Settings

OPEN = frozenset({"/health", "/metrics"})  # to probes and Prometheus, without a key and to the last


@dataclass
class Door:
    """Whether requests are let in, and how many are inside."""

    draining: bool = False
    inside: int = 0


class Gate:
    """ASGI middleware.

    Args:
        app: Gets what is let in.
        door: A request let in is counted until it is answered, and is answered even if the door closes meanwhile.
        settings: Its `limits.body_bytes`: a larger body is refused by what its head says of it, else once that much of
            it has come. Its `api_key`: `Authorization: Bearer …` must hold it.
    """

    def __init__(self, app: ASGIApp, door: Door, settings: Settings):
        self.app, self.door, self.body_bytes = app, door, settings.limits.body_bytes
        self.expected = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        size = 0

        async def measured() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.body_bytes:
                raise self._too_big()
            return message

        async def parting(message: Message) -> None:
            if message["type"] == "http.response.start" and self.door.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self.door.inside += 1
        try:
            await self.app(scope, measured, parting)
        finally:
            self.door.inside -= 1

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if self.expected is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not compare_digest(given.strip(" \t").encode("latin-1"), self.expected):
                how = {"WWW-Authenticate": "Bearer"}
                return Refused(401, "give the server's key: Authorization: Bearer …", None, "invalid_api_key", how)
        if self.door.draining:
            how = {"Retry-After": "1", "Connection": "close"}
            return Refused(503, "the server is shutting down; another one should answer", None, "draining", how)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.body_bytes:
            return self._too_big()
        return None

    def _too_big(self) -> Refused:
        return Refused(413, f"a body of more than {self.body_bytes} bytes (limits.body_bytes)", None, "body_too_large")
