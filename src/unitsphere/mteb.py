"""A run folder, model folder or hub model as a model of the mteb package (the extra `mteb`).

    import mteb
    from unitsphere.mteb import load

    mteb.evaluate(load("outputs/infonce-mean/s1_…"), mteb.get_tasks(["STSBenchmark"]))

Code: https://github.com/embeddings-benchmark/mteb
"""

import hashlib
from pathlib import Path

import torch

from unitsphere import artefact
from unitsphere.embedder import Embedder
from unitsphere.evaluation.mteb_model import MTEBModel


def load(path: str | Path) -> MTEBModel:
    """The model, with the prompts that it was saved with.

    Its revision is a digest of weights and settings, so that mteb's cache of results knows it from others of its name.

    Raises:
        UsageError: Nothing loadable is at `path`.
    """
    embedder = artefact.load(path)
    embedder.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return MTEBModel(embedder.embed, f"unitsphere/{Path(path).name}", digest(embedder), embedder.prompts)


def digest(embedder: Embedder) -> str:
    """sha256 of an embedder's weights and of its settings, in hexadecimal."""
    found = hashlib.sha256(repr(embedder.protocol()).encode())
    for name, weight in sorted(embedder.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
