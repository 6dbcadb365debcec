"""`unitsphere encode`: a corpus's vectors in Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app, stored
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.model import Model
    from unitsphere.search.shards import Shards

DTYPES = ("float32", "float16")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("encode", job, arguments)


def job(config: DictConfig) -> None:
    """Write what is missing, and say what is there."""
    from unitsphere.report.table import show

    made = encode(hydra_app.resolved(config))
    show(f"{made.about['documents']:,} vectors of {made.about['dim']} numbers in {len(made):,} files: {made.folder}")
    for limit, cut in made.cut.items():
        show(f"{cut:,} documents were cut at {limit} tokens, the model's limit or max_length")


def encode(config: DictConfig) -> "Shards":
    """Compute the files that are not there.

    Raises:
        UsageError: The corpus is empty or has a bad row, a setting or the model does not fit, the folder was begun with
            others, or another process is at it.
    """
    from unitsphere.build import build
    from unitsphere.formats import on_disk
    from unitsphere.process import cpu_threads, quiet
    from unitsphere.report.table import show
    from unitsphere.search import shards
    from unitsphere.workers.encoding import Encoding, Workers

    quiet()
    if config.workers.get("threads") == "auto":
        config.workers.threads = cpu_threads()
    if config.rows < 1 or config.dtype not in DTYPES:
        raise UsageError(f"rows={config.rows}, dtype={config.dtype}: 1 or more and {' or '.join(DTYPES)} would fit.")
    workers: Workers = build(config.workers)
    ids, texts = on_disk.documents(config.corpus, **config.columns)
    here = Path(config.model).expanduser()
    encoding = Encoding(str(here.resolve()) if here.exists() else config.model, config.role, config.max_length)
    check_role(config.role, encoding.model)
    about: dict[str, Any] = {"model": encoding.path, "identity": encoding.model.identity(), "role": config.role}
    about |= {"max_length": encoding.model.encoder.limit(config.max_length), "dim": encoding.model.dim}
    about |= {"dtype": config.dtype, "rows": config.rows, **stored.content(config.corpus, texts, ids)}
    about["columns"] = OmegaConf.to_container(config.columns)
    with shards.writing(Path(config.out).expanduser().resolve(), about) as made:
        missing = made.missing()

        def blocks() -> Iterator[tuple[int, list[str]]]:
            for number in missing:
                yield number, [texts[row] for row in made.rows(number)]

        for done, (number, encoded) in enumerate(workers(encoding, blocks()), len(made) - len(missing) + 1):
            made.write(number, [ids[row] for row in made.rows(number)], encoded.vectors, encoded.cut)
            show(f"{made.file(number).name} written, {done:,} of {len(made):,} are there")
    return made


def check_role(role: str, model: "Model") -> None:
    """Raises:
    UsageError: The model has no such prompt, and it is no role that every model has.
    """
    known = dict.fromkeys(("document", "query", "symmetric", *model.prompts))
    if role not in known:
        raise UsageError(f"role={role}: {', '.join(known)} would fit.")
