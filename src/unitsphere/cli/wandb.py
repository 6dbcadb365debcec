"""`unitsphere wandb FILE`: the commands of a Weights & Biases sweep file, run here without their server."""

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml

from unitsphere.errors import UsageError

USAGE = """unitsphere wandb FILE [print=true] [key=value …]

FILE is a sweep configuration of Weights & Biases whose method is grid. With their server it runs as

  wandb sweep FILE && wandb agent ENTITY/PROJECT/ID

and without it as `unitsphere wandb FILE`: every command of the grid, one after another, logged offline (WANDB_MODE is
offline unless it is set) in one group, for `wandb sync` later. One that fails stops no other (status 2).
Parameters become Hydra overrides (`${args_no_hyphens}`: loss=simcse optim.lr=0.0001); further ones go to every command.

  unitsphere wandb sweeps/wandb/pooling_by_loss.yaml print=true         # what would be run
  unitsphere wandb sweeps/wandb/pooling_by_loss.yaml trainer.max_steps=20
"""
DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    from unitsphere.report.table import show

    file, more = Path(arguments[0]), list(arguments[1:])
    lines = commands(file)
    if "print=true" in more:
        more.remove("print=true")
        sys.stdout.write("".join(shlex.join([*line, *more]) + "\n" for line in lines))
        return
    environment = {"WANDB_MODE": "offline", "WANDB_RUN_GROUP": file.stem} | os.environ
    failed = []
    for number, line in enumerate(lines, 1):
        full = [sys.executable if part == "python" else part for part in line] + more
        show(f"{number} of {len(lines)}: {shlex.join([*line, *more])}")
        if subprocess.run(full, env=environment).returncode:
            failed.append(shlex.join([*line, *more]))
    if failed:
        raise UsageError(f"{len(failed)} of {len(lines)} commands failed:\n  " + "\n  ".join(failed))


def commands(file: Path) -> list[list[str]]:
    """The command lines of a grid, in the order in which Weights & Biases goes through it: the last parameter first.

    Raises:
        UsageError: The file is not there or no grid, or its command has a macro that means nothing here.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file.")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(config, Mapping) or config.get("method") != "grid" or not config.get("parameters"):
        raise UsageError(f"{file}: only `method: grid` with parameters is run here; others are drawn by their server.")
    grid = [[(key, value) for value in _values(file, key, node)] for key, node in config["parameters"].items()]
    return [_command(file, config, cell) for cell in itertools.product(*grid)]


def _values(file: Path, key: str, node: Any) -> list[Any]:
    if isinstance(node, Mapping) and isinstance(node.get("values"), list):
        return list(node["values"])
    if isinstance(node, Mapping) and "value" in node:
        return [node["value"]]
    raise UsageError(f"{file}: parameters.{key} is {node!r}; in a grid it has `value: …` or `values: […]`.")


def _command(file: Path, config: Mapping[str, Any], cell: Sequence[tuple[str, Any]]) -> list[str]:
    typed = [f"{key}={yaml.safe_dump(v, default_flow_style=True, width=inf).split(chr(10))[0]}" for key, v in cell]
    macros = {
        "${env}": [],  # /usr/bin/env
        "${interpreter}": ["python"],
        "${program}": [str(config.get("program", "train.py"))],
        "${args}": [f"--{override}" for override in typed],
        "${args_no_hyphens}": typed,
    }
    line: list[str] = []
    for part in config.get("command", DEFAULT):
        if str(part).startswith("${") and part not in macros:
            raise UsageError(f"{file}: command has {part}; {', '.join(macros)} are understood.")
        line += macros.get(part, [str(part)])
    return line
