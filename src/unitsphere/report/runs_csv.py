"""Runs as a CSV file: what a table is made of where the run folders themselves are gone.

One line a run. Columns: `run` (its folder), groups and keys (`loss`, `loss.temperature`, `seed`), metrics
(`test/docstrings/mrr@10`, raw), and facts (`run.steps`, `run.versions.torch`). Scores of single queries and pairs are
not in it, so intervals over them need the folders. What only names the machine (host, process, absolute paths) is left
out.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.report.comparability import differing, is_name
from unitsphere.report.records import Record, leaves

FACTS = (
    "status", "started", "primary", "steps", "best_step", "looks", "wall_seconds", "peak_memory_gib", "parameters",
    "python", "processor", "device", "threads", "versions", "git", "data", "protocol",
)  # fmt: skip

DOT = "%2E"


def written(records: Sequence[Record]) -> str:
    """The text of the file, runs in the order of their folders, what differs first."""
    lines = []
    for record in sorted(records, key=lambda r: str(r.folder)):
        facts = {key: record.info[key] for key in FACTS if key in record.info}
        facts["looks"] = [look["step"] for look in facts.get("looks") or []]
        settings = {key: value for key, value in record.settings.items() if not is_name(key) or key == "seed"}
        values = settings | dict(record.metrics) | dict(leaves({"run": _escaped(facts)}))
        lines.append({"run": str(record.folder)} | {key: _cell(value) for key, value in values.items()})
    columns = list(dict.fromkeys(key for line in lines for key in line))
    first = ["run", *(key for key in (*differing(records), "seed") if key in columns)]
    columns.sort(key=lambda c: first.index(c) if c in first else len(first) + ("/" not in c))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def read(file: Path) -> list[Record]:
    """The records of such a file.

    Raises:
        UsageError: It is no such file.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: no table of runs can be read there: {error}") from None
    found = []
    for number, line in enumerate(lines, start=2):
        if not line.get("run") or None in line or None in line.values():
            raise UsageError(f"{file}, line {number}: a run and as many cells as the heading has should stand there.")
        values = {key: _value(text) for key, text in line.items() if text != "" and key != "run"}
        facts = _nested({key.removeprefix("run."): v for key, v in values.items() if key.startswith("run.")})
        metrics = {key: value for key, value in values.items() if "/" in key}
        settings = {k: v for k, v in values.items() if k not in metrics and not k.startswith("run.")}
        found.append(Record(Path(line["run"]), facts, settings, metrics))
    return found


def _cell(value: Any) -> str:
    """Text as it is, unless it would be read back as something else; all other values as JSON."""
    if not isinstance(value, str):
        return json.dumps(value)
    text = _portable(value)
    return text if text and _value(text) == text else json.dumps(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _portable(text: str) -> str:
    """A path below the data sets' or the current folder without the part that is this machine's own."""
    for folder, name in ((paths.data(), "${UNITSPHERE_DATA}/"), (Path.cwd(), "")):
        if folder is not None and text.startswith(f"{folder}/"):
            return name + text.removeprefix(f"{folder}/")
    return text


def _escaped(node: Any) -> Any:
    """Dots in keys, such as those of a data set's name, so written that `_nested` tells them from its own."""
    if not isinstance(node, Mapping):
        return node
    return {str(key).replace(".", DOT): _escaped(value) for key, value in node.items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = (part.replace(DOT, ".") for part in key.split("."))
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def differences(kept: Iterable[Record], found: Iterable[Record]) -> list[str]:
    """In which metrics runs and their lines in a file differ, and which runs are in one of the two only."""
    lines = {str(r.folder): r.metrics for r in kept}
    runs = {str(r.folder): r.metrics for r in found}
    said = [f"{run} is not in runs.csv" for run in runs.keys() - lines.keys()]
    said += [f"{run} is in runs.csv, and not among the runs" for run in lines.keys() - runs.keys()]
    for run in lines.keys() & runs.keys():
        said += [
            f"{run}: {name} is {runs[run].get(name)}, and {lines[run].get(name)} in runs.csv"
            for name in sorted(runs[run].keys() | lines[run].keys())
            if runs[run].get(name) != lines[run].get(name)
        ]
    return sorted(said)
