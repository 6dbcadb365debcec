"""`unitsphere compare A B`: is B better than A, on what does it lose, and keep that."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unitsphere.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from unitsphere.report.comparison import Comparison
    from unitsphere.report.records import Record
    from unitsphere.types import RetrievalSet

USAGE = """unitsphere compare A B [key=value …]

Compares two models, A and B, each a run, an evaluation or a cell of a sweep, query by query and pair by pair: the
difference with its 95% interval (paired bootstrap, 2,000 samples), p of a paired randomisation test (10,000 swaps), the
same after Holm's correction for the number of tests, and the items that B wins and loses. Of several seeds a row,
`unitsphere table baseline=…` takes the means.

  metric=scifact/*,sts/stsb   names or patterns; by default the first metric of every task
  stage=test             which scores: test, before (untrained), last (the last step), dev; stage=before,last takes
                         A's before and B's last, so that a run can be compared with its own start
  worst=10               print the queries and pairs on which B loses most: what is asked, what should be found, and
                         what each ranks first
  save=FOLDER            keep the worst (50, or as many as worst= says) of each task as a set of their own; they are
                         scored by eval=[…,bad_cases] eval.bad_cases.path=FOLDER, in training and in evaluate
  out=FOLDER/NAME        also write NAME.md and NAME.csv
  fail_if_worse=true     exit status 1 where B is significantly worse (p after Holm below 0.05) in one of the metrics
  mix=true               allow models that measured in different ways

A set that was chosen because B lost on it is unfair to B, and to whatever resembles it: the next model scores better
there by chance alone. It tells whether what was broken is repaired; it does not tell which model is better.

  unitsphere compare outputs/simcse-mean/s1_20261124-212000 outputs/infonce-mean/s1_20261124-213000 worst=5
  unitsphere compare outputs/infonce-mean/s1_… outputs/infonce-mean/s1_… stage=before,test metric=sts/*
  unitsphere compare production candidate fail_if_worse=true save=bad_cases
  unitsphere evaluate model=candidate eval=bad_cases eval.bad_cases.path=bad_cases
"""
OPTIONS = ("metric", "stage", "worst", "save", "out", "fail_if_worse", "mix")
STAGES = ("test", "before", "last", "dev")
SAVED = 50


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    paths = [a for a in arguments if Path(a).exists() or "=" not in a]
    options: dict[str, str] = {}
    for argument in (a for a in arguments if a not in paths):
        key, _, value = argument.partition("=")
        if key not in OPTIONS:
            raise UsageError(f"compare: {argument!r} is not understood; {'=…, '.join(OPTIONS)}=… are.")
        options[key] = value
    if len(paths) != 2:
        raise UsageError(f"compare: two models are compared, and {len(paths)} were named.")
    if _job(_record(paths[0]), _record(paths[1]), options):
        sys.exit(1)


def _job(a: "Record", b: "Record", options: Mapping[str, str]) -> bool:
    """Compare, print and write; whether the check that was asked for says no."""
    from rich.table import Table

    from unitsphere.report import comparison
    from unitsphere.report.table import show
    from unitsphere.runs import write

    stages = _stages(options.get("stage", "test"))
    fail, mix = (_flag(options, key) for key in ("fail_if_worse", "mix"))
    count = _count(options.get("worst", "0"))
    save = Path(options["save"]) if "save" in options else None
    if save is not None and save.exists():
        raise UsageError(f"save={save} is there already; name a new folder.")
    made = comparison.compare(a, b, stages, [m for m in options.get("metric", "").split(",") if m], mix)
    show(f"A: {a.folder}\nB: {b.folder}\n{comparison.explained(made)}")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # ten columns are to fit into 80 characters
    for heading in comparison.HEADINGS:
        name = heading == "metric"
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name, overflow="fold")
    for line in made.lines:
        table.add_row(*comparison.cells(line))
    show(table)
    for note in made.notes:
        show(f"note: {note}")
    if "out" in options:
        out = Path(options["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out.with_name(f"{out.name}.md"), comparison.markdown(made, a, b))
        write(out.with_name(f"{out.name}.csv"), comparison.csv(made))
        show(f"written: {out}.md, .csv")
    if count or save is not None:
        _regressions(made, a, b, stages, count, save)
    worse = [line.metric for line in made.lines if line.worse]
    if fail and worse:
        show(f"B is significantly worse: {', '.join(worse)}")
    return fail and bool(worse)


def _regressions(
    made: "Comparison", a: "Record", b: "Record", stages: tuple[str, str], count: int, save: Path | None
) -> None:
    """Print the `count` worst items of each task, and keep them in the folder `save`."""
    from unitsphere.report import regressions
    from unitsphere.report.table import show

    lost = regressions.worst(made, count or SAVED)
    if not lost:
        show("B loses on nothing" + ("; nothing is saved" if save is not None else ""))
        return
    sets: Sequence[RetrievalSet] | None = None
    kept: dict[str, RetrievalSet | pd.DataFrame] = {}
    for task, (line, at) in lost.items():
        x, y = (regressions.items(of, stage, task, at) for of, stage in zip((a, b), stages, strict=True))
        if {"prediction", "score"} <= set(x):
            text, kept[task] = regressions.pairs(x, y), x[["sentence1", "sentence2", "score"]]
        elif "found" in x or "found" in y:
            sets = _sets(b, stages[1], [*lost]) if sets is None else sets
            of = regressions.searched(sets, task, x)
            if of is None:
                show(f"note: the texts of {task} are not where {b.folder} read them")
                continue
            text = regressions.queries(line, x, y, of)
            if save is not None:
                kept[task] = regressions.bad_set(of, x)
        else:
            text = regressions.texts(line, x, y)
            if save is not None:
                show(f"note: {task} is not kept; only queries of a search and pairs with a score are")
        if count:
            show(f"\n{line.metric}, on which B loses most:\n" + "\n".join(text))
    if save is not None and kept:
        _save(kept, save)
        show(f"\nsaved in {save}; unitsphere evaluate model=… eval=bad_cases eval.bad_cases.path={save}")
        for task, of_task in kept.items():
            cut = getattr(of_task, "max_length", None)
            length = f", cut to {cut} tokens: eval.bad_cases.max_length={cut}" if cut else ""
            stamp = (b.info.get("protocol") or {}).get(task, {})
            own = ", eval.bad_cases.ignore_identical_ids=true" if stamp.get("ignore_identical_ids") else ""
            show(f"  {task}: {len(lost[task][1])}{length}{own}")


def _sets(record: "Record", stage: str, tasks: Sequence[str]) -> "Sequence[RetrievalSet]":
    """The retrieval sets that these tasks of a run or evaluation may have searched, read again from where its
    configuration says: the data's own, and the BEIR folders that an evaluator's `path` is or holds. No evaluator is
    built for it, as one may load a model or a benchmark."""
    from dataclasses import replace

    from omegaconf import OmegaConf

    from unitsphere.cli.evaluate import own
    from unitsphere.formats import beir
    from unitsphere.report.records import leaves

    config, split = OmegaConf.load(record.folder / "config.yaml"), "dev" if stage == "dev" else "test"
    of_run = own(config, split)  # type: ignore[arg-type]
    found = [of_run] if of_run is not None else []
    of_eval = OmegaConf.to_container(config.eval)
    named = {Path(str(path)).expanduser() for key, path in leaves(of_eval) if key.endswith(".path") and path}  # type: ignore[arg-type]
    inside = {file.parent for path in named for file in path.glob("*/queries.jsonl")}
    for folder in sorted(folder for folder in named | inside if any(task.startswith(folder.name) for task in tasks)):
        try:
            found.append(beir.read(str(folder), split))
        except UsageError:  # of another kind, or without this split
            continue
    lengths = {task: stamp.get("max_length") for task, stamp in record.info.get("protocol", {}).items()}
    return [replace(of, max_length=lengths.get(of.name, of.max_length)) for of in found]


def _save(kept: "Mapping[str, RetrievalSet | pd.DataFrame]", folder: Path) -> None:
    """FOLDER/<task>/ in BEIR's layout for queries, FOLDER/<task>.jsonl for pairs; whole or not at all."""
    import shutil

    from unitsphere.formats import beir
    from unitsphere.types import RetrievalSet

    part = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for task, of_task in kept.items():
        if isinstance(of_task, RetrievalSet):
            beir.write(part / task, {"test": of_task})
        else:
            of_task.to_json(part / f"{task}.jsonl", orient="records", lines=True, force_ascii=False)
    part.replace(folder)


def _record(path: str) -> "Record":
    from unitsphere.report.records import find

    found = find([path])
    if len(found) != 1:
        raise UsageError(f"compare: {path} holds {len(found)} runs; name one of them, or use unitsphere table.")
    return found[0]


def _stages(text: str) -> tuple[str, str]:
    stages = text.split(",")
    if len(stages) > 2 or not set(stages) <= set(STAGES):
        raise UsageError(f"compare: stage={text}: one of {', '.join(STAGES)} would fit, or two: A's and B's.")
    return stages[0], stages[-1]


def _flag(options: Mapping[str, str], key: str) -> bool:
    value = options.get(key, "false")
    if value not in ("true", "false"):
        raise UsageError(f"compare: {key}={value}: true or false would fit.")
    return value == "true"


def _count(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"compare: worst={text}: a number of queries would fit.")
    return int(text)
