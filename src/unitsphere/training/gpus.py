"""One GPU for each of several processes on a machine."""

import os
import socket
from functools import cache

import torch
from filelock import FileLock, Timeout

from unitsphere import paths
from unitsphere.errors import UsageError

_HELD: list[FileLock] = []  # a lock that is collected is let go


@cache
def take_one() -> str | None:
    """Take a GPU that no other process has taken here, until this process ends; it alone is visible from then on.

    To be called before CUDA is begun. None, and nothing changes, where no more than one GPU is visible.

    Raises:
        UsageError: All are taken.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if len(visible) < 2:
        return None
    for gpu in visible:
        lock = FileLock(paths.cache() / f"gpu-{socket.gethostname()}-{gpu}.lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            continue
        _HELD.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return gpu
    raise UsageError(
        f"all {len(visible)} GPUs are taken by other cells; hydra.launcher.n_jobs={len(visible)} would fit."
    )
