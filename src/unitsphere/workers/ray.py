"""Processes of Ray, on one machine or a cluster.

Texts go out and vectors come back, so that only the model has to be where the workers are, and a block that is encoded
twice, because its worker was killed, leaves nothing behind. Code: https://docs.ray.io/en/latest/ray-core/actors.html
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch

from unitsphere.errors import UsageError
from unitsphere.workers.encoding import Encoded, Encoding


class Ray:
    """Each worker loads the model once and has one block at a time. One that is killed is started again by Ray, here or
    on another machine, with the block that it had.

    Args:
        count: Workers; None is as many as there is room for.
        threads: CPU threads of each, and the cores that Ray keeps for it.
        gpus: GPUs of each.
        retries: How often a block whose worker was killed is given out again.
        address: Of a cluster, as for `ray.init`: `auto`, `host:port`; None is that of RAY_ADDRESS or of this machine,
            else one that lives as long as this process.

    Raises:
        UsageError: Ray is not installed, the numbers make no sense, there is less room than that, or a block was given
            up.
    """

    def __init__(
        self, count: int | None = None, threads: int = 1, gpus: float = 0, retries: int = 3, address: str | None = None
    ):
        if find_spec("ray") is None:
            raise UsageError("workers=ray: ray is missing: pip install 'unitsphere[ray]'")
        if (count is not None and count < 1) or threads < 1 or gpus < 0 or retries < 0:
            raise UsageError(
                f"workers.count={count}, threads={threads}, gpus={gpus}, retries={retries}: 1 or more, 1 or more, 0 or "
                "more and 0 or more would fit."
            )
        self.count, self.threads, self.gpus, self.retries, self.address = count, threads, gpus, retries, address

    def __call__(
        self, encoding: Encoding, blocks: Iterator[tuple[int, Sequence[str]]]
    ) -> Iterator[tuple[int, Encoded]]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        with _connected(self.address):
            resources = {"num_cpus": self.threads, "num_gpus": self.gpus}
            kind = ray.remote(max_restarts=-1, max_task_retries=self.retries, **resources)(_Worker)
            working: dict[Any, tuple[int, Any]] = {}
            for number, texts in islice(blocks, self._room(ray.nodes())):
                worker = kind.remote(encoding, self.threads)
                working[worker.encode.remote(texts)] = number, worker
            while working:
                (done,), _ = ray.wait(list(working))
                number, worker = working.pop(done)
                try:
                    encoded = ray.get(done)
                except RayActorError as error:
                    raise UsageError(
                        f"block {number}: its worker was killed {self.retries + 1} times, or could not be started. "
                        "Less memory would be needed with a smaller workers.count or rows. Ray says: "
                        f"{' '.join(str(error).split())}"
                    ) from error
                except RayTaskError as error:
                    raise error.cause from error
                for following, texts in islice(blocks, 1):
                    working[worker.encode.remote(texts)] = following, worker
                yield number, encoded

    def _room(self, nodes: Sequence[dict[str, Any]]) -> int:
        """How many workers to start."""
        room = 0
        for node in nodes:
            has = node["Resources"] if node["Alive"] else {}
            fit = has.get("CPU", 0) // self.threads
            room += int(min(fit, has.get("GPU", 0) / self.gpus + 1e-9) if self.gpus else fit)  # 5 workers of 0.2, not 4
        if room < (self.count or 1):
            raise UsageError(
                f"workers.count={self.count}, threads={self.threads}, gpus={self.gpus}: Ray has room for {room} such "
                f"workers on {len(nodes)} machines."
            )
        return self.count or room


class _Worker:
    """One process: the model, loaded when the first texts come."""

    def __init__(self, encoding: Encoding, threads: int):
        torch.set_num_threads(threads)
        self.encoding = encoding

    def encode(self, texts: Sequence[str]) -> Encoded:
        return self.encoding(texts)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Ray, left again by whom it was joined."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise UsageError(f"workers.address={address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
