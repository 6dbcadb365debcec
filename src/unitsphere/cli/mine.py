"""`unitsphere mine`: hard negatives for a data set's training pairs, and an audit of them."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app, stored
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

if TYPE_CHECKING:
    from unitsphere.data.rows import Rows
    from unitsphere.mining.candidates import Negative
    from unitsphere.mining.miner import Miner


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("mine", job, arguments)


def job(config: DictConfig) -> None:
    """Check what was asked for, mine, audit and print."""
    from unitsphere.process import cpu_threads
    from unitsphere.report.table import show

    config = hydra_app.resolved(config)
    if config.threads == "auto":
        config.threads = cpu_threads()
    if config.chunk < 1 or config.audit < 0:
        raise UsageError(f"chunk={config.chunk} and audit={config.audit}: 1 or more and 0 or more would fit.")
    run = mine(config)
    for name, value in run.metrics.items():
        show(
            f"{name} {value:.2%}" if name.startswith(("false_negatives", "cross_encoder/over")) else f"{name} {value:g}"
        )
    show(f"train on them with preparation=mined preparation.mined.path={run.folder}/negatives.jsonl and the same data")
    show(str(run.folder))


def mine(config: DictConfig) -> Run:
    """Mine negatives for every training pair, and save them in a new folder.

    Raises:
        UsageError: The data has no pairs, or a source, filter, model or stored vectors do not fit.
    """
    import torch

    from unitsphere.build import build
    from unitsphere.cli.evaluate import embedder_of
    from unitsphere.data.preparation.step import prepare
    from unitsphere.evaluation.stored import remembered
    from unitsphere.mining import audit
    from unitsphere.mining.candidates import asked, with_positives
    from unitsphere.mining.instructed import Instructed
    from unitsphere.mining.miner import Miner
    from unitsphere.process import quiet
    from unitsphere.report.mined import pictures

    quiet()
    torch.set_num_threads(config.threads)
    sources = {name: build(node) for name, node in config.source.items()}
    shards = stored.opened(config.vectors)
    if shards is not None and not any(source.reads_model for source in sources.values()):
        raise UsageError(f"vectors={config.vectors}: source=dense reads them, source=[{','.join(sources)}] does not.")
    filters = {name: build(node) for name, node in config.filter.items()}
    scorer = _scorer(config.cross_encoder) if config.cross_encoder is not None else None
    data = build(config.data)
    steps = {name: build(node) for name, node in config.preparation.items()}
    rows, prepared = prepare(data.splits.train, steps, config.seed)
    if rows.positive is None:
        raise UsageError(f"data={data.name} has no positives: negatives are mined for pairs (pairs, triplets, beir, …)")
    embedder = embedder_of(config) if any(source.reads_model for source in sources.values()) else None
    if embedder is not None:
        embedder.to("cuda" if torch.cuda.is_available() else "cpu")
    instructions = rows.instructions
    if shards is not None and any(role == "document" for role, _ in instructions):
        raise UsageError(
            f"vectors={config.vectors}: they are of documents without the instructions that data={data.name} puts "
            "before them; leave vectors out, and the documents are embedded as training reads them"
        )
    embed = embedder and Instructed(remembered(embedder, config.vector_cache), instructions)
    known = asked(rows.anchor, rows.positive)
    queries, positives = list(known), list(known.values())
    corpus = data.corpus(rows) if config.corpus is None else stored.documents(config.corpus, shards)[1]
    if shards is not None and embedder is not None:
        of_model = {"model": config.model, "identity": embedder.identity(), "role": "document"}
        of_model |= {"max_length": embedder.encoder.limit(config.max_length)}
        shards.check(of_model | stored.content(config.corpus or f"data={data.name}", corpus))
    documents = with_positives(corpus, positives)
    run = Run.create(Path(config.outputs) / config.name, stamped("mine"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(config))
    run.note(**provenance(), status="running", data={"name": data.name, **data.splits.provenance()})
    run.note(preparation=prepared)
    with run.lock(), TemporaryDirectory(dir=run.folder) as work:
        for source in sources.values():
            source.attach(documents, embed, Path(work), config.max_length, shards.vectors() if shards else ())
        miner = Miner(documents, sources, filters, config.pick, config.seed)
        mined = _mined(miner, queries, positives, config.chunk)
        _save(run.folder / "negatives.jsonl", rows, documents, dict(zip(queries, mined, strict=True)))
        counts = [len(negatives) for negatives in mined]
        found: dict[str, float] = {"documents": len(documents), "queries": len(queries), "negatives": sum(counts)}
        found["without_negatives"] = counts.count(0)
        if config.audit:
            found |= audit.hidden_positives(miner, queries, positives, config.audit, config.seed)
            if scorer is not None:
                found |= audit.agreement(scorer, documents, queries, positives, mined, config.audit, config.seed)
        table = audit.scores(mined)
        run.add_metrics(found)
        run.add_items("mined", {"negatives": table})
        pictures(table, run.folder)
        if embedder is not None:
            run.note_cut("mining", embedder.read, "max_length")
        run.note(status="done")
    return run


def _mined(
    miner: "Miner", queries: Sequence[str], positives: Sequence[Sequence[str]], chunk: int
) -> "list[list[Negative]]":
    return [
        negatives
        for start in range(0, len(queries), chunk)
        for negatives in miner(queries[start : start + chunk], positives[start : start + chunk])
    ]


def _save(file: Path, rows: "Rows", documents: Sequence[str], mined: "dict[str, list[Negative]]") -> None:
    """One line a training pair: its columns, its negatives (its own first) and how the new ones were found."""
    part = file.with_name(f"{file.name}.{os.getpid()}.writing")
    with part.open("w", encoding="utf-8") as out:
        for line in _lines(rows, documents, mined):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    part.replace(file)


def _lines(rows: "Rows", documents: Sequence[str], mined: "dict[str, list[Negative]]") -> Iterator[dict[str, Any]]:
    from unitsphere.data.rows import COLUMNS

    columns = [column for column in COLUMNS if getattr(rows, column) is not None and column != "negative"]
    for i, anchor in enumerate(rows.anchor):
        had = list(rows.negative[i]) if rows.negative is not None else []
        line = {column: getattr(rows, column)[i] for column in columns}
        line["negative"] = had + [documents[negative.row] for negative in mined[anchor]]
        line["mined"] = [{"source": n.source, "rank": n.rank, **n.scores} for n in mined[anchor]]
        yield line


def _scorer(path: str) -> Any:
    from unitsphere.encoders.cross_encoder import CrossEncoder

    return CrossEncoder(path)
