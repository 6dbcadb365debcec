"""Counts and times the steps of a training loop or the passes of an encoder, whichever library runs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from unitsphere import process
from unitsphere.bench.peak import forward_flops, step_flops, synchronized
from unitsphere.errors import UsageError


class Meter:
    """Counts from `start` to `stop`.

    Args:
        network: The transformers encoder: every id that it looks up it computes, padding and all.
        reads: The module that is given whole texts.
        mask: Takes that module's positional arguments, gives the mask (B, T) of their tokens.
    """

    def __init__(self, network: Any, reads: nn.Module, mask: Callable[[tuple[Any, ...]], Tensor]):
        self.network, self.mask = network, mask
        self.computed, self.moments, self.spans = 0, torch.zeros(2).double(), list[float]()
        self.on, self.lock = False, Lock()  # of several passes at a time
        self.seconds: float | None = None
        network.get_input_embeddings().register_forward_pre_hook(self._computes)
        reads.register_forward_pre_hook(self._reads)

    def _computes(self, module: nn.Module, args: tuple[Tensor]) -> None:
        with self.lock:
            if self.on:
                self.computed += args[0].numel()

    def _reads(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        with self.lock:
            if self.on:
                n = self.mask(args).sum(dim=1).double()
                self.moments = self.moments.to(n.device)
                self.moments += torch.stack([n.sum(), n.square().sum()])

    def start(self) -> None:
        """Begin to count; what was counted before is forgotten."""
        self.computed, self.moments, self.spans, self.on = 0, torch.zeros(2).double(), [], True
        forget_peak()
        self.began = synchronized()

    @contextmanager
    def model(self) -> Iterator[None]:
        """While open, time is the model's."""
        began = synchronized()
        yield
        if self.on:
            self.spans.append(synchronized() - began)

    def stop(self) -> None:
        """Stop counting."""
        self.seconds, self.peak, self.on = synchronized() - self.began, peak(), False

    def rate(self, unit: str, count: int) -> dict[str, float]:
        """What needs no look into the passes.

        Args:
            unit: What is counted a second, e.g. "samples".
            count: How many of them there were.

        Raises:
            UsageError: `stop` was not reached.
        """
        if self.seconds is None:
            raise UsageError(
                f"bench: it ended before the last of the {unit} that were to be timed: more rows or epochs would fit, "
                "or smaller bench.options"
            )
        return {f"{unit}/s": count / self.seconds, "peak MiB": self.peak}

    def numbers(self, unit: str, count: int, trains: bool, reads: int = 1) -> dict[str, float]:
        """What was counted; without tokens where `reads` was given none, as by a loss that calls the network itself.

        Args:
            unit, count: As for `rate`.
            trains: Whether each pass had a backward one.
            reads: How often each text was read. What is computed again counts as time, not as work.

        Raises:
            UsageError: As for `rate`.
        """
        found = self.rate(unit, count)
        seconds = count / found[f"{unit}/s"]
        tokens, squares = (self.moments / reads).tolist()
        if tokens:
            flops = (step_flops if trains else forward_flops)(self.network, tokens, squares)
            found["tokens/s"] = tokens / seconds
            found["padding %"] = 100 * (1 - tokens * reads / self.computed)
            found["FLOP/s"] = flops / seconds
        if self.spans:
            found["outside the model %"] = 100 * (1 - sum(self.spans) / seconds)
        return found


def forget_peak() -> None:
    """From now on the peak memory is that from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        process.forget_peak()


def peak() -> float:
    """MiB at most since `forget_peak`, of the GPU where there is one, else of the process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process.peak_memory()
