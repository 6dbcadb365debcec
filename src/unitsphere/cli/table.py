"""`unitsphere table PATH…`: runs as a paper's table, with what is unequal among them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.report.records import Record
    from unitsphere.report.sheet import Sheet

USAGE = """unitsphere table PATH… [key=value …]
unitsphere table STUDY/study.yaml [key=value …]

Arranges the runs in these folders (and below them) as a table: mean ± sd over seeds, best and second, differences from
a baseline with significance, and a list of what is unequal among the runs. An evaluation of a run counts with that
run's settings. Runs of `unitsphere compress` of one model become one ladder, its rungs' mean ± sd over seeds.

  rows=loss,pooling      groups and keys that make the rows; by default all in which the runs differ
  cols=pooling           the same for columns, with one metric
  metric=docstrings/mrr@10,sts/avg   names or patterns (sts/*, */ndcg@10); sts is the seven tasks and their mean,
                         sts/* of runs with eval=sts_languages a column a language;
                         by default the primary one; of test unless before/, last/ or dev/ stands before it
  baseline=loss=simcse   the row to compare with; baseline=before compares each model with itself untrained
  layout=ablation        rows say only in what they depart from the baseline
  out=FOLDER/NAME        also write NAME.md, NAME.tex, NAME.csv and NAME.html
  mix=true               allow runs that measured in different ways

Significance: a paired bootstrap over queries or pairs (2,000 samples), and a paired t-test over seeds with Cohen's d.

  unitsphere table outputs/sweeps/train/20261124-212000 rows=loss cols=pooling
  unitsphere table outputs rows=loss metric=sts baseline=loss=simcse out=experiments/losses/table
  unitsphere table outputs/compressed/minilm out=experiments/compression/ladder
"""
OPTIONS = ("rows", "cols", "metric", "baseline", "layout", "out", "mix")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    paths = [a for a in arguments if Path(a).exists() or "=" not in a]
    options: dict[str, str] = {}
    for argument in (a for a in arguments if a not in paths):
        key, _, value = argument.partition("=")
        if key not in OPTIONS:
            raise UsageError(f"table: {argument!r} is not understood; {'=…, '.join(OPTIONS)}=… are.")
        options[key] = value
    if not paths:
        raise UsageError("table: name one or more folders of runs, e.g. outputs")
    records, given = found(paths)
    options = {**given, **options}
    from unitsphere.report import ladder as ladders

    parts = ladders.parts(records)
    runs = [record for record in records if record not in parts]
    if not runs:
        return ladder(parts, options)
    show(runs, options)
    if parts:
        of = dict.fromkeys(str(record.folder.parent) for record in parts if ladders.is_one(record))
        sys.stdout.write(f"left out: ladders of compression, which are tables of their own: {', '.join(of)}\n")


def found(paths: Sequence[str]) -> "tuple[list[Record], Mapping[str, str]]":
    """The runs in folders; or those of a study.yaml, from their folders or else runs.csv, and its table's options."""
    from unitsphere.report import records, runs_csv

    if len(paths) != 1 or Path(paths[0]).name != "study.yaml":
        return records.find(paths), {}
    from unitsphere.cli.study import Study

    study = Study.read(Path(paths[0]).parent)
    return study.runs("outputs") or runs_csv.read(study.folder / "runs.csv"), study.table


def arranged(records: "Sequence[Record]", options: Mapping[str, str]) -> "Sheet":
    """The table that the options ask for.

    Raises:
        UsageError: An option's value does not fit, or there is nothing to show.
    """
    from unitsphere.report.sheet import ablation, sheet

    if options.get("layout", "grid") not in ("grid", "ablation"):
        raise UsageError(f"table: layout={options['layout']}: grid or ablation would fit.")
    if options.get("mix", "false") not in ("true", "false"):
        raise UsageError(f"table: mix={options['mix']}: true or false would fit.")
    made = sheet(
        records,
        rows=_listed(options["rows"]) if "rows" in options else None,
        cols=_listed(options.get("cols", "")),
        metrics=_listed(options.get("metric", "")),
        baseline=_baseline(options.get("baseline")),
        mix=options.get("mix") == "true",
    )
    return ablation(made) if options.get("layout") == "ablation" else made


def show(records: "Sequence[Record]", options: Mapping[str, str]) -> None:
    """Arrange, print and, with out=, write."""
    from unitsphere.report import render
    from unitsphere.report.table import show as printed
    from unitsphere.runs import write

    made = arranged(records, options)
    printed(render.terminal(made))
    if "out" in options:
        from unitsphere.report.page import page

        out = Path(options["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        forms = {"md": render.markdown, "tex": render.latex, "csv": render.csv}
        for ending, form in forms.items():
            write(out.with_name(f"{out.name}.{ending}"), form(made))
        write(out.with_name(f"{out.name}.html"), page(made, out.name))
        printed(f"written: {out}.md, .tex, .csv, .html")


def ladder(records: "Sequence[Record]", options: Mapping[str, str]) -> None:
    """Runs of `unitsphere compress` as one ladder: print it and, with out=, write it.

    Raises:
        UsageError: An option does not fit, or the runs do not belong together.
    """
    from unitsphere.report import ladder
    from unitsphere.report.table import show as printed

    if unfit := options.keys() - {"out"}:
        raise UsageError(f"table: {sorted(unfit)[0]}= is not for ladders of compression; out=FOLDER/NAME is.")
    ladders = ladder.find(records)
    printed(ladder.terminal(ladders))
    if "out" in options:
        out = Path(options["out"])
        ladder.save(ladders, out, out.with_name(f"{out.name}.png"))
        printed(f"written: {out}.md, .tex, .csv, .html, .png")


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _baseline(text: str | None) -> Mapping[str, str] | str | None:
    if text is None or "=" not in text:
        return text
    return {part.partition("=")[0]: part.partition("=")[2] for part in text.split(",")}
