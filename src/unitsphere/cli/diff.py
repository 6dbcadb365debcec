"""`unitsphere diff A B`: two runs side by side, what is not equal."""

from collections.abc import Sequence

from unitsphere.errors import UsageError

USAGE = """unitsphere diff A B

Shows in what two runs (or evaluations) differ: settings, versions, machine, data, protocol; and every metric of both.

  unitsphere diff outputs/simcse-mean/s1_20261124-212000 outputs/infonce-mean/s1_20261124-213000
"""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    if len(arguments) != 2:
        raise UsageError(f"diff: two runs are compared, and {len(arguments)} were named.")
    from rich.table import Table

    from unitsphere.report import comparability
    from unitsphere.report.records import find, leaves, written
    from unitsphere.report.table import show, shown

    records = [record for path in arguments for record in find([path])]
    if len(records) != 2:
        raise UsageError(f"diff: {' and '.join(arguments)} hold {len(records)} runs; name two.")
    sides = []
    for r in records:
        stamps = {f"protocol {key}": written(v) for key, v in leaves(r.info.get("protocol", {}))}
        settings = {key: written(v) for key, v in r.settings.items() if not comparability.is_name(key) or key == "seed"}
        sides.append(settings | comparability.facts(r) | stamps)
    first, second = sides
    table = Table()
    for heading in ("differs", *arguments):
        table.add_column(heading, overflow="fold")
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            table.add_row(key, first.get(key, "-"), second.get(key, "-"))
    show(table)
    scores = Table()
    scores.add_column("metric", overflow="fold")
    for heading in (*arguments, "difference"):
        scores.add_column(heading, justify="right", overflow="fold")
    a, b = (r.metrics for r in records)
    for name in dict.fromkeys([*a, *b]):
        difference = b[name] - a[name] if name in a and name in b else None
        scores.add_row(name, shown(name, a.get(name)), shown(name, b.get(name)), shown(name, difference, "+"))
    show(scores)
