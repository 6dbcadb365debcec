"""What a process is set up with before it computes, and how one of several ends."""

import logging
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import NoReturn

PEAK = Path("/proc/self/clear_refs")  # proc(5)


def cpu_threads() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet() -> None:
    """Keep what libraries say about themselves out of the way of what the run says."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *where: f"{message}\n"  # a person reads what, not in which line of ours
    for name in ("pytorch_lightning", "lightning_fabric", "torch", "faiss", "bm25s"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*in eval mode.*",
        ".*isinstance.treespec.*",
        ".*is smaller than the logging.*",
    ):
        warnings.filterwarnings("ignore", message)


def forget_peak() -> None:
    """From now on `peak_memory` is that from now on. Nothing happens where there is no /proc."""
    if PEAK.exists():
        PEAK.write_text("5")


def peak_memory() -> float:
    """MiB of resident memory that this process has had at most. (getrusage's number is that of the parent at first.)

    Raises:
        ImportError: The system does not tell: it is Windows.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (kib,) = re.findall(r"VmHWM:\s+(\d+)", status.read_text())
        return float(kib) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, where there is no /proc


def leave() -> NoReturn:
    """End this process, which has done its work, without Python's clearing up.

    gloo's threads may still hold the tensors of the last collective. Where they let go of them while Python clears up,
    the process is aborted (https://github.com/pytorch/pytorch/pull/179291), and Lightning then kills the first rank.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The name of this machine's processor, with the numbers that tell those of one name apart, as those of a cloud's
    "AMD EPYC", which compute other last digits and at another speed."""
    first = info.read_text().partition("\n\n")[0] if info.exists() else ""
    said = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", first, re.MULTILINE))
    if "model name" not in said:
        return platform.processor()
    numbers = [f"{name} {said[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in said]
    return f"{said['model name'].strip()} ({', '.join(numbers)})" if numbers else said["model name"].strip()
