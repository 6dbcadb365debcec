"""`unitsphere split`: a validation and a test set out of one's own pairs."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("split", job, arguments)


def job(config: DictConfig) -> None:
    """Read the pairs, divide them, write the folder and print what is in it."""
    from unitsphere.build import build
    from unitsphere.data.split import divide, write
    from unitsphere.report import table
    from unitsphere.similar import Exact, Near

    config = hydra_app.resolved(config)
    folder = Path(config.out).expanduser()
    if folder.exists():
        raise UsageError(f"{folder} is there already; out= names a new folder.")
    if config.queries < 1 or config.dev < 0:
        raise UsageError(f"queries={config.queries}, dev={config.dev}: 1 or more, and 0 or more would fit.")
    for node in (config.data, *(config.data.get("sources") or {}).values()):
        if "held_out" in node:
            node.held_out = 0  # all of the file is divided here
        if "instruction_format" in node:
            node.instruction_format = "{}"  # whoever trains on the rows formats them
    same = {"equal": Exact()} | ({} if config.near is None else {"near": Near(config.near, config.shingle)})
    counts = {"test": config.queries} | ({"dev": config.dev} if config.dev else {})
    data = build(config.data)
    rows = data.splits.train
    division = divide(rows, counts, same, config.stratify, config.seed)
    about = {key: config[key] for key in ("seed", "stratify", "near", "shingle")} | {"path": config.data.get("path")}
    said = write(division, folder, about, data.corpus(rows))
    held = ", ".join(f"{said[split]['queries']} {split} queries" for split in counts)
    dropped = " and ".join(f"{count} {reason}" for reason, count in said["dropped"].items())
    table.show(
        f"{held}, {said['documents']} documents, {said['train']['rows']} rows for training; left out for being the "
        f"same as one: {dropped}. {said['train_rows_with_an_answer']} training rows share a document with it."
    )
    if said["without_instruction"]:
        table.show(
            f"{' and '.join(said['without_instruction'])}: train.jsonl keeps the instructions; BEIR's layout has no "
            "place for them, so the queries drawn are scored without"
        )
    table.show(str(folder))
