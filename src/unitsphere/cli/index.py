"""`unitsphere index`: embed a corpus and keep what finds its documents."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from unitsphere.cli import hydra_app, stored
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.coded import Coded
    from unitsphere.search.bm25 import BM25
    from unitsphere.search.folder import IndexFolder

BLOCK = 16384  # documents embedded at a time


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("index", job, arguments)


def job(config: DictConfig) -> None:
    """Make the index and say what it is."""
    from unitsphere.report.table import show

    made = make(hydra_app.resolved(config))
    show(f"{len(made):,} documents, {made.about['vector_bytes']:,} bytes a vector on disk, {made.index.name}")
    for limit, cut in made.about["cut"].items():
        show(f"{cut:,} documents were cut at {limit} tokens, the model's limit or max_length")
    show(f'unitsphere search in={made.folder} query="…"')


def make(config: DictConfig) -> "IndexFolder":
    """Embed the documents and write the folder.

    Raises:
        UsageError: The folder is there already, the corpus is empty or has a bad row, or model, index or stored vectors
            do not fit.
    """
    from unitsphere.artefact import plain
    from unitsphere.build import build
    from unitsphere.search import folder
    from unitsphere.search.codes import Float32
    from unitsphere.search.dense import unit

    out, shards = new(config.out), stored.opened(config.vectors)
    ids, texts = stored.documents(config.corpus, shards)
    model, about = loaded(config.model, config.threads)
    about |= {"corpus": config.corpus, "max_length": config.max_length}
    if shards is not None:
        if not isinstance(model.code, Float32):
            raise UsageError(
                f"vectors={config.vectors}: {config.model} is stored as {model.code.name}, which is made of numbers "
                "that the folder has not; leave out vectors=."
            )
        of_model = {"model": config.model, "identity": about["identity"], "role": "document"}
        of_model |= {"max_length": model.encoder.limit(config.max_length)}
        shards.check(of_model | stored.content(config.corpus, texts, ids))

    def vectors() -> Iterator[np.ndarray]:
        if shards is not None:
            about["cut"] = shards.cut
            yield from map(unit, shards.vectors())
            return
        with model.counting() as read:
            for start in range(0, len(texts), BLOCK):
                some = [texts[i] for i in range(start, min(start + BLOCK, len(texts)))]
                yield model.floats(some, "document", max_length=config.max_length)
            about["cut"] = {limit: cut for (_, limit), (_, cut) in read.items() if cut}

    def words(texts: Sequence[str]) -> "BM25":
        made: BM25 = build(config.bm25, documents=texts)
        return made

    documents = zip(ids, texts, strict=True)
    return folder.make(
        out, documents, vectors(), model.code, plain(config["index"]), words if config.bm25 else None, about
    )


def new(path: str) -> Path:
    """Raises:
    UsageError: Something is there already.
    """
    there = Path(path).expanduser().resolve()
    if there.exists():
        raise UsageError(f"{there} is there already; out= names something new.")
    return there


def loaded(path: str, threads: int | str) -> "tuple[Coded, dict[str, Any]]":
    """A model, ready to embed, and what an index says of it.

    Raises:
        UsageError: Nothing loadable is there.
    """
    import torch

    from unitsphere import artefact
    from unitsphere.coded import Coded
    from unitsphere.process import cpu_threads, quiet

    quiet()
    torch.set_num_threads(cpu_threads() if threads == "auto" else int(threads))
    model = artefact.load(path).to("cuda" if torch.cuda.is_available() else "cpu")
    here = Path(path).expanduser()
    about = {"model": str(here.resolve()) if here.exists() else path, "identity": model.identity()}
    return Coded.of(model), about | {"protocol": model.protocol()}
