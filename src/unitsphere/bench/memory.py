"""The most memory that a process needs to load a model and embed texts with it: `python -m unitsphere.bench.memory`.

A process of its own each time, because memory that was once taken is not all given back.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def peak(folder: Path, texts: Sequence[str], size: int, max_length: int | None) -> float:
    """MiB of resident memory that loading the model and embedding the texts add to a process that has the libraries
    loaded. Threads are those of this process.

    Args:
        folder: A model.
        texts: What is embedded.
        size: Texts a batch.
        max_length: Tokens read of a text.
    """
    import torch

    given = json.dumps([str(folder), list(texts), size, max_length, torch.get_num_threads()])
    line = [sys.executable, "-m", "unitsphere.bench.memory"]
    ended = subprocess.run(line, input=given, capture_output=True, text=True, check=True)
    return float(ended.stdout.splitlines()[-1])


def main() -> None:
    """Read what to do from standard input, and print the number."""
    import onnxruntime  # noqa: F401
    import torch

    from unitsphere import artefact
    from unitsphere.process import peak_memory, quiet

    folder, texts, size, max_length, threads = json.loads(sys.stdin.read())
    torch.set_num_threads(threads)
    quiet()
    began = peak_memory()
    model = artefact.load(folder)
    for start in range(0, len(texts), size):
        model.encode(texts[start : start + size], max_length=max_length)
    sys.stdout.write(f"{peak_memory() - began:.1f}\n")


if __name__ == "__main__":
    main()
