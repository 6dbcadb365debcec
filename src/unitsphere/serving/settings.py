"""What a server may be told, with what fits; conf/serve.yaml has the same keys and says what each costs."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Limits:
    """What is refused, and nothing of it computed.

    Attributes:
        texts: Of a request (413).
        characters: Of a text with its prompt (413).
        body_bytes: Of a request (413, before more is read).
        queue_tokens: Waiting for the model, from which on new requests are refused (429). One request may overfill it.
    """

    texts: PositiveInt = 2048
    characters: PositiveInt = 100_000
    body_bytes: PositiveInt = 2**24
    queue_tokens: PositiveInt = 100_000


@dataclass(frozen=True)
class Settings:
    """How requests are answered.

    Attributes:
        name: What clients call the model.
        role: The prompt of requests that name none; None is the model's default, which few have.
        on_long: A text beyond the model's tokens is cut to them, and counted, or refused.
        batch_tokens: At which a batch is full.
        wait_ms: How long a batch that is not full waits for more while the model is idle.
        cache_mib: Of vectors kept in memory.
        api_key: That a request must bear; None asks for none.
    """

    name: str = "model"
    role: str | None = None
    on_long: Literal["cut", "error"] = "cut"
    batch_tokens: PositiveInt = 1024
    wait_ms: Amount = 0
    cache_mib: Amount = 256
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Process:
    """Where requests come in, and what computes.

    Attributes:
        host: An address of this machine, or a name of it.
        port: 0 takes a free one.
        threads: Of the model, on a CPU.
        grace_seconds: For accepted requests to finish after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    threads: PositiveInt = 1
    grace_seconds: Amount = 30
