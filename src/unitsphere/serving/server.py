"""uvicorn, which lets what it has accepted finish before it closes its door for good.

On the first SIGTERM or SIGINT, /health says draining and new requests get 503, on the connections that are open as on
new ones; once the last accepted request is answered and its client has read the answer, or after `grace` seconds, the
process ends. A second signal ends it at once.
"""

import math
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from unitsphere.errors import UsageError
from unitsphere.serving.gate import Door

KEEP_ALIVE = 75  # seconds; longer than the minute after which load balancers drop an idle connection


class Server(uvicorn.Server):
    """Serves one application.

    Args:
        app: Made by `create_app`.
        door: The application's.
        grace: Seconds for accepted requests to finish, and for their clients to read the answers.
    """

    def __init__(self, app: FastAPI, door: Door, grace: float):
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        super().__init__(config)
        self.door, self.grace, self.deadline = door, grace, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.door.draining:
            self.should_exit = self.force_exit = True
        self.door.draining = True
        self.deadline = min(self.deadline, time.monotonic() + self.grace)

    async def on_tick(self, counter: int) -> bool:
        done = self.door.draining and (self.door.inside == 0 or time.monotonic() > self.deadline)
        if done:  # an answered request may still lie in the buffer of a client that reads slowly
            self.config.timeout_graceful_shutdown = max(1, math.ceil(self.deadline - time.monotonic()))
        return await super().on_tick(counter) or done


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: The address is taken or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(f"host={host} port={port}: {error}. port=0 takes a free one.") from error
    # Connections inherit it. asyncio does not set it on what create_server made, and an answer would wait 40 ms for an
    # acknowledgement between its head and its body.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
