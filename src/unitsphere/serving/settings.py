"""What a server may be told; conf/serve.yaml says what each costs."""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from unitsphere.errors import UsageError

OnLong = Literal["cut", "error"]


@dataclass(frozen=True)
class Limits:
    """What is refused, and nothing of it computed.

    Attributes:
        texts: Of a request (413).
        characters: Of a text with its prompt (413).
        body_bytes: Of a request (413, before more is read).
        queue_tokens: Waiting for the model from which on new requests are refused (429). One request may overfill it.
    """

    texts: int = 2048
    characters: int = 100_000
    body_bytes: int = 2**24
    queue_tokens: int = 100_000

    def __post_init__(self) -> None:
        for of in fields(self):
            if getattr(self, of.name) < 1:
                raise UsageError(f"limits.{of.name}={getattr(self, of.name)}: 1 or more would fit.")


@dataclass(frozen=True)
class Settings:
    """How a server answers.

    Attributes:
        name: What clients call the model.
        role: The prompt of requests that name none; None puts nothing before their texts.
        on_long: A text beyond the model's tokens is cut to them, and counted, or refused.
        batch_tokens: At which a batch is full.
        wait_ms: How long a batch that is not full waits for more while the model is idle.
        cache_mib: Of vectors kept in memory.
        api_key: That a request must bear; None asks for none.
    """

    name: str = "model"
    role: str | None = None
    on_long: OnLong = "cut"
    batch_tokens: int = 1024
    wait_ms: float = 0
    cache_mib: float = 256
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.on_long not in get_args(OnLong):
            raise UsageError(f"on_long={self.on_long}: cut or error would fit.")
        if self.batch_tokens < 1 or self.wait_ms < 0 or self.cache_mib < 0:
            raise UsageError(
                f"batch_tokens={self.batch_tokens}, wait_ms={self.wait_ms}, cache_mib={self.cache_mib}: 1 or more, and "
                "0 or more would fit."
            )
