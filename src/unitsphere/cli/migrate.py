"""`unitsphere migrate`: an index's vectors in another model's space, without embedding its documents again."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.cli.index import loaded, new
from unitsphere.cli.search import model_of
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.coded import Coded
    from unitsphere.search.folder import IndexFolder
    from unitsphere.search.linear import LinearMap
    from unitsphere.types import Embed

NEIGHBOURS = 10
BLOCK = 65536
MEASURES = ("recall@1", "recall@10", "recall@100", "mrr@10", "ndcg@10")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("migrate", job, arguments)


def job(config: DictConfig) -> None:
    """Write the new index, and say what the map costs."""
    from unitsphere.report import table

    made = migrate(hydra_app.resolved(config))
    said = made.about["migration"]
    table.show(
        f"{said['map']}, learned from {said['sample']:,} documents; on {said['held_out']:,} others the cosine to what "
        f"the new model makes of them is {said['cosine']:.3f}, and {said[f'neighbours@{NEIGHBOURS}']:.1%} of their "
        f"{NEIGHBOURS} nearest stay"
    )
    if "retrieval" in said:
        table.show(table.side_by_side(said["retrieval"], title=f"on {said['set']}"))
        was, mapped, _ = (of_way[f"{said['set']}/{MEASURES[-1]}"] for of_way in said["retrieval"].values())
        if mapped < was:
            table.show(
                "less is found than by the old model with the old index: embed the documents again, or keep both"
            )
    table.show(
        f"embedding all {len(made):,} documents would take about {said['seconds_to_embed_all']:,.0f} s; mapping them "
        f"took {said['seconds_to_map_all']:,.1f} s"
    )
    table.show(f'unitsphere search in={made.folder} query="…"')


def migrate(config: DictConfig) -> "IndexFolder":
    """Learn the map, measure it, and write the index of what it makes of the old vectors.

    Raises:
        UsageError: There is no index, the model is the one that made it, a number does not fit, or the BEIR folder has
            documents that the index has not.
    """
    from unitsphere.artefact import plain
    from unitsphere.build import build
    from unitsphere.search import folder
    from unitsphere.search.alignment import agreement
    from unitsphere.search.vectors import blocks

    out, old = new(config.out), folder.IndexFolder(Path(config["from"]).expanduser())
    if config.sample < 1 or config.held_out <= NEIGHBOURS or config.sample + config.held_out > len(old):
        raise UsageError(
            f"sample={config.sample}, held_out={config.held_out}: 1 or more, and more than {NEIGHBOURS}; together at "
            f"most the index's {len(old):,} documents."
        )
    model, about = loaded(config.model, config.threads)
    if about["identity"] == old.about["identity"]:
        raise UsageError(f"model={config.model} is the one that made {old.folder}.")
    rows = np.random.default_rng(config.seed).permutation(len(old))[: config.sample + config.held_out]
    started = time.monotonic()
    now = model.floats([old.texts[row] for row in rows], "document", max_length=old.about["max_length"])
    to_embed = (time.monotonic() - started) / len(rows) * len(old)
    was = old.vectors.take(rows)
    by: LinearMap = build(config.alignment, old=was[: config.sample], new=now[: config.sample])
    said: dict[str, Any] = {"from": str(old.folder), "old_model": old.about["model"], "map": by.name}
    said |= {"sample": config.sample, "held_out": config.held_out, "seed": config.seed}
    said |= agreement(by(was[config.sample :]), now[config.sample :], NEIGHBOURS)
    if config.path is not None:
        said |= compared(config, old, model, by)
    said |= {"seconds_to_embed_all": to_embed, "seconds_to_map_all": 0.0}

    def vectors() -> Iterator[np.ndarray]:
        for _, block in blocks(old.vectors, BLOCK):
            started = time.monotonic()
            z = by(block)
            said["seconds_to_map_all"] += time.monotonic() - started
            yield z

    about |= {name: old.about[name] for name in ("corpus", "max_length", "cut")} | {"migration": said}
    words = (lambda texts: old.words) if old.has_words else None
    documents = zip(old.ids, old.texts, strict=True)
    return folder.make(out, documents, vectors(), model.code, plain(config["index"]), words, about)


def compared(config: DictConfig, old: "IndexFolder", model: "Coded", by: "LinearMap") -> dict[str, Any]:
    """Retrieval over the indexed BEIR folder in three ways: each a new query model or not, and new documents or not.

    Raises:
        UsageError: The index has not all of its documents, or the old model is not there.
    """
    from unitsphere.evaluation.retrieval import Retrieval

    retrieval = Retrieval(config.split, path=config.path, max_length=old.about["max_length"])
    of = retrieval.set
    row_of = {i: row for row, i in enumerate(old.ids) if i in of.corpus}
    missing = next((i for i in of.corpus if i not in row_of), None)
    if missing is not None:
        raise UsageError(
            f"path={config.path}: {old.folder} has no document {missing!r}; it was made of another corpus."
        )
    row = {text: row_of[i] for i, text in of.corpus.items()}

    def stored(texts: Sequence[str]) -> np.ndarray:
        return old.vectors.take(np.array([row[text] for text in texts]))

    def mapped(texts: Sequence[str]) -> np.ndarray:
        return model.code.decode(model.code.encode(by(stored(texts))))

    ways = {
        "old queries,\nold documents": _by(model_of(old, config.old_model, config.threads).embed, stored),
        "new queries, old\ndocuments mapped": _by(model.embed, mapped),
        "new queries,\nnew documents": model.embed,
    }
    found = {way: retrieval(embed).metrics for way, embed in ways.items()}
    kept = {way: {f"{of.name}/{m}": of_way[f"{of.name}/{m}"] for m in MEASURES} for way, of_way in found.items()}
    return {"set": of.name, "retrieval": kept}


def _by(queries: "Embed", documents: Any) -> "Embed":
    """Queries by a model, documents by what gives their vectors."""

    def embed(texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None) -> np.ndarray:
        return documents(texts) if role == "document" else queries(texts, role, max_length, prompt)

    return embed
