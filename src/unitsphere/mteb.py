"""A run folder, model folder or hub model as a model of the mteb package (the extra `mteb`).

    import mteb
    from unitsphere.mteb import load

    mteb.evaluate(load("outputs/infonce-mean/s1_…"), mteb.get_tasks(["STSBenchmark"]))

Code: https://github.com/embeddings-benchmark/mteb
"""

from pathlib import Path

import torch

from unitsphere import artefact
from unitsphere.evaluation.mteb_model import MTEBModel


def load(path: str | Path) -> MTEBModel:
    """The model, with the prompts that it was saved with.

    Its revision is its identity (see `Model.identity`), so that mteb's cache of results knows it from others of its
    name.

    Raises:
        UsageError: Nothing loadable is at `path`.
    """
    embedder = artefact.load(path).to("cuda" if torch.cuda.is_available() else "cpu")
    return MTEBModel(embedder.embed, f"unitsphere/{Path(path).name}", embedder.identity(), embedder.prompts)
