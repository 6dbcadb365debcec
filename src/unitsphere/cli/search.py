"""`unitsphere search`: ask an index."""

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.cli.index import loaded, new
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.coded import Coded
    from unitsphere.search.folder import IndexFolder

FOUND = list[dict[str, Any]]


def main(arguments: Sequence[str]) -> None:
    """Entry point. A query is no value of Hydra's grammar, in which a comma or an apostrophe has a meaning."""
    asked = [argument.removeprefix("query=") for argument in arguments if argument.startswith("query=")]
    rest = [argument for argument in arguments if not argument.startswith("query=")]
    hydra_app.run("search", partial(job, asked=asked), rest)


def job(config: DictConfig, asked: Sequence[str] = ()) -> None:
    """Search, and print or write what was found."""
    from unitsphere.report.table import show

    config = hydra_app.resolved(config)
    out = new(config.out) if config.out is not None else None
    queries = given(config.queries, asked)
    found = search(config, queries)
    if out is not None:
        lines = ({"_id": i, "query": text, "found": f} for (i, text), f in zip(queries, found, strict=True))
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f"{out.name}.{os.getpid()}.writing")
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        part.replace(out)
        show(str(out))
        return
    width = max(shutil.get_terminal_size((110, 20)).columns, 60)
    for (_, text), of_query in zip(queries, found, strict=True):
        show(" ".join(text.split()))
        for hit in of_query:
            line = f"{hit['rank']:>4}  {hit['score']:8.4f}  {hit['id']}  {' '.join(hit['text'].split())}"
            show(line if len(line) <= width else line[: width - 1] + "…")


def given(path: str | None, asked: Sequence[str]) -> list[tuple[str, str]]:
    """Ids and texts of the queries.

    Raises:
        UsageError: There are none, two kinds of them, or one is empty or not Unicode.
    """
    from unitsphere.formats import on_disk

    if (path is None) == (not asked):
        raise UsageError('give one of query="…" and queries=FILE')
    typed = ((str(number), text) for number, text in enumerate(asked, 1))
    queries = list(typed if path is None else zip(*on_disk.documents(path), strict=True))
    for i, text in queries:
        if not text.strip():
            raise UsageError(f"{path or 'query='}: the query {i} has no text.")
        if text.encode("utf-8", "ignore").decode() != text:  # half of a surrogate pair, which no tokenizer reads
            raise UsageError(f"{path or 'query='}: the query {i} is not Unicode text: {text[:80]!r}")
    return queries


def search(config: DictConfig, queries: Sequence[tuple[str, str]]) -> list[FOUND]:
    """Of each query the `k` best documents, or all where there are fewer: rank, score, id, text.

    Raises:
        UsageError: There is no index, its model is not the one that made it, or a number does not fit.
    """
    from unitsphere.build import build
    from unitsphere.search.folder import IndexFolder
    from unitsphere.search.rerank import rerank

    folder = IndexFolder(Path(config["in"]).expanduser())
    if min(config.k, config.depth, config.candidates) < 1:
        raise UsageError(f"k={config.k}, depth={config.depth}, candidates={config.candidates}: 1 or more would fit.")
    score = build(config.cross_encoder, path=config.reranker) if config.reranker is not None else None
    words = folder.words if config.get("hybrid") else None
    model = model_of(folder, config.model, config.threads)
    texts = [text for _, text in queries]
    wanted = min(max(config.k, config.depth if score is not None else 0), len(folder))
    first = min(max(wanted, config.candidates if words is not None else 0), len(folder))
    ranking = folder.index.search(model.encode(texts, "query", max_length=folder.about["max_length"]), first)
    if words is not None:
        ranking = build(config.hybrid, rankings=[ranking, words.search(texts, first)], k=wanted)
    if score is not None:
        ranking = rerank(texts, folder.texts, ranking, score, config.depth)
    return [
        [
            {"rank": rank, "score": float(s), "id": folder.ids[row], "text": folder.texts[row]}
            for rank, (s, row) in enumerate(zip(scores[: config.k], rows[: config.k].tolist(), strict=True), 1)
            if row >= 0
        ]
        for scores, rows in zip(*ranking, strict=True)
    ]


def model_of(folder: "IndexFolder", path: str | None, threads: int | str) -> "Coded":
    """The model that made an index.

    Args:
        folder: The index.
        path: Where the model is now; None is where it was.
        threads: CPU threads.

    Raises:
        UsageError: It is not there, or what is there is another one.
    """
    was = folder.about["model"]
    try:
        model, about = loaded(path or was, threads)
    except UsageError as error:
        raise UsageError(f"{error} It has made {folder.folder}; model=… says where it is now.") from error
    if about["identity"] != folder.about["identity"]:
        raise UsageError(
            f"{folder.folder} was made by {was} ({folder.about['identity'][:12]}), and {path or was} is another model "
            f"({about['identity'][:12]}). Index the documents again, or map their vectors: unitsphere migrate "
            f"from={folder.folder} model={path or was} out=…"
        )
    return model
