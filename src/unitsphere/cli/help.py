"""The page that `--help` prints, read out of conf/ itself: a group's purpose stands in the root config's defaults, an
option's in the first comment of its file, a key's behind it."""

import re
import shutil
import textwrap
from pathlib import Path

from unitsphere import paths


def page(root: str) -> str:
    """The help page of conf/<root>.yaml."""
    text = (paths.conf() / f"{root}.yaml").read_text(encoding="utf-8")
    head, _, body = text.partition("\ndefaults:")
    defaults, keys = re.split(r"^(?=\S)", body, maxsplit=1, flags=re.MULTILINE)
    about = [line.removeprefix("#").removeprefix(" ") for line in head.splitlines() if line.startswith("#")]
    out = ["\n".join(about).rstrip(), "", "Groups: choose an option with GROUP=OPTION, several with GROUP=[A,B]"]
    for group, default, purpose in re.findall(r"^  - (\w+): (.+?)  +# (.+)$", defaults, flags=re.MULTILINE):
        out.append(f"\n  {group}  ({purpose}; default {default.strip()})")
        options = sorted((paths.conf() / group).glob("*.yaml"))
        width = max((len(option.stem) for option in options), default=0)
        out += [_wrapped(f"    {option.stem:<{width}}  ", first_comment(option)) for option in options]
    out.append("\nKeys: set one with KEY=VALUE (group.key=value inside a group; --cfg job prints them all)\n")
    for key, value, purpose in re.findall(r"^(\w+): ?(.*?)  +# (.+)$", keys, flags=re.MULTILINE):
        out.append(_wrapped(f"  {key}={value}".ljust(24) + " ", purpose))
    return "\n".join(out) + "\n"


def first_comment(option: Path) -> str:
    """The first comment of a config file, after Hydra's `@package` if it has that."""
    comments = re.match(r"(?:# @package .*\n)?# (.*)\n", option.read_text(encoding="utf-8"))
    return comments[1] if comments else ""


def _wrapped(lead: str, text: str) -> str:
    width = max(shutil.get_terminal_size((110, 20)).columns, 60)
    return textwrap.fill(text, width, initial_indent=lead, subsequent_indent=" " * len(lead)) if text else lead.rstrip()
