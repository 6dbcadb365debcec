"""Several passes through an encoder at a time, on a CPU.

Threads that share a pass wait for each other after every operation: several passes at a time do not.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

AT_ONCE = 16  # passes: with more, Python's lock, which each holds for a few percent of its time, would be waited for


def side_by_side(compute: Callable[[np.ndarray], None], passes: Sequence[np.ndarray], model: nn.Module) -> None:
    """compute(some) for every pass through a model, without gradients: on a CPU up to `AT_ONCE` at a time, which share
    torch's threads.

    The first is computed alone, so that what a model makes with it (tables of positions) is there for the others. Fewer
    passes than threads are computed one after another, each on all threads. A thread of the caller's that first uses
    torch meanwhile keeps a share of the threads.
    """

    def without_gradients(some: np.ndarray, inference: bool = torch.is_inference_mode_enabled()) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            compute(some)

    threads = torch.get_num_threads()
    share = -(-threads // AT_ONCE)
    several = threads // share
    autocast = torch.is_autocast_enabled("cpu")  # of which a new thread knows nothing
    there = next(model.parameters()).device.type == "cpu"
    if not there or several == 1 or len(passes) <= several or autocast or _by_length(model):
        for some in passes:
            without_gradients(some)
        return
    without_gradients(passes[0])
    try:
        with ThreadPoolExecutor(several, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            for _ in pool.map(without_gradients, passes[1:]):
                pass
    finally:
        torch.set_num_threads(threads)  # what threads begin with that come later


def _by_length(model: nn.Module) -> bool:
    """Whether it sets frequencies of its positions anew for the length of every pass."""
    kinds = str([getattr(module, "rope_type", None) for module in model.modules()])
    return "dynamic" in kinds or "longrope" in kinds
