"""Compose a configuration with Hydra and run a job on it; bad usage ends in one message and status 2.

Nothing here imports torch: `--help` and `--cfg job` answer at once.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unitsphere import paths
from unitsphere.cli.help import page
from unitsphere.errors import UsageError


def run(root: str, job: Callable[[DictConfig], Any], arguments: Sequence[str], verb: str | None = None) -> None:
    """Compose conf/<root>.yaml with the arguments and call `job` once, or once a cell with `-m`.

    Args:
        root: Name of a root config.
        job: Gets the composed configuration.
        arguments: In Hydra's grammar.
        verb: How the command is called, where that is not the root's name.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.stdout.write(page(root))
        return
    for argument in arguments:
        if wrong := _list_for_one(argument):
            fail(UsageError(wrong))
    # With full errors Hydra lets exceptions through, and they are turned into messages here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import_from_here()
    # Lightning starts further ranks by this file's name, and must not do it by the module's, which would lose the verb.
    sys.modules["__main__"].__spec__ = None

    def guarded(config: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return job(config)
        try:
            _numbers_are_numbers(config, root)
            return job(config)
        except UsageError as error:
            fail(error)  # not an Exception, so that Hydra adds nothing to the message

    try:
        flags, overrides = divided(arguments)
        sys.argv = [str(Path(__file__).with_name(f"{verb or root}.py")), *overrides, *flags]
        hydra.main(version_base="1.3", config_path=str(paths.conf()), config_name=root)(guarded)()
    except (HydraException, OmegaConfBaseException, YAMLError, UsageError) as error:
        fail(error)


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides. Hydra takes no override after a flag that follows one.

    Raises:
        UsageError: Two flags each say what to do.
    """
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    actions = ("multirun", "cfg", "info", "run", "shell_completion")
    given = [f"--{flag.replace('_', '-')}" for flag in actions if getattr(parsed, flag)]
    if len(given) > 1:
        raise UsageError(f"{' '.join(given)}: one of them")
    overrides: list[str] = parsed.overrides
    return [argument for argument in arguments if argument not in overrides], overrides


def import_from_here() -> None:
    """Let a person's own `_target_: mine.MyLoss` be found in the current folder, and our verbs by no other's import."""
    verbs = str(Path(__file__).parent)  # where a further rank starts as a script
    sys.path[:] = [place for place in sys.path if place != verbs]
    sys.path.append(str(Path.cwd()))


def resolved(config: DictConfig) -> DictConfig:
    """The configuration with every interpolation replaced by its value.

    Raises:
        UsageError: A value is missing (`???`) or an interpolation leads nowhere.
    """
    try:
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise UsageError(f"{', '.join(sorted(missing))} must be given: {sorted(missing)[0]}=…")
        return OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UsageError(str(error).splitlines()[0]) from error


def fail(error: BaseException) -> None:
    """Print one message and end with status 2."""
    sys.stderr.write(f"error: {_message(error)}\n")
    sys.exit(2)


def quoted(override: str) -> str:
    """key=text with the text in quotes: of a path (/home/用户, a (1).csv) Hydra's grammar does not take every
    character."""
    key, _, value = override.partition("=")
    escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"{key}='{escaped}'"


def filled(override: str, places: Mapping[str, str]) -> str:
    """An override with `{name}` replaced by a path; in quotes, where the path begins its value."""
    key, _, value = override.partition("=")
    begins = any(value.startswith(f"{{{name}}}") for name in places)
    for name, place in places.items():
        value = value.replace(f"{{{name}}}", place)
    return quoted(f"{key}={value}") if begins else f"{key}={value}" if "=" in override else override


def _message(error: BaseException) -> str:
    """What a person needs to know, without Hydra's advice on its own options."""
    text = str(error).strip().removeprefix("LexerNoViableAltException: ")
    if isinstance(error, UsageError):
        return text
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text += f": {str(cause).strip().splitlines()[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "hydra.cc" not in line]
    lines = [
        line for line in lines if not line.startswith(("Config search path", "provider=", "full_key", "object_type"))
    ]
    wrong = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    key = re.search(r"Key '([^']+)' is not in struct", text)
    near: list[str] = []
    if wrong:
        near = get_close_matches(wrong[2], _options(wrong[1]), n=1)
    if key:
        lines = [line for line in lines if not line.startswith("Key ")]
        options = _options(key[1])
        if options:  # its keys come with one
            said = [line for line in lines if not line.startswith("To append")]
            return "\n  ".join([*said, f"Choose one first: {key[1]}={'|'.join(options)}"])
        beside = getattr(cause, "parent_node", None)
        names = [str(name) for name in beside] if isinstance(beside, DictConfig) else _keys()
        near = get_close_matches(key[1], [name for name in names if name != key[1]], n=1)
        lines.append(f"There is no key {key[1]!r} here.")
    if isinstance(error, OverrideParseException) and "=" in error.override:
        lines.append(f'Where it is a text, quote it: "{quoted(error.override)}"')
    if "…" in text:
        lines.append("… stands for what is different on your machine.")
    return "\n  ".join(lines) + (f"\n  Did you mean {near[0]!r}?" if near else "")


def _numbers_are_numbers(config: DictConfig, root: str) -> None:
    """Of the root's own keys; those of options `build` looks at.

    Raises:
        UsageError: One that has a number by default is a text.
    """
    defaults = OmegaConf.to_container(OmegaConf.load(paths.conf() / f"{root}.yaml"))
    assert isinstance(defaults, dict)
    for key, default in defaults.items():
        if type(default) in (int, float) and isinstance(config.get(key), str):
            raise UsageError(f"{key!s}={config[key]}: a number would fit.")


def _options(group: str) -> list[str]:
    """Those of a config group; none where there is no such group."""
    return sorted(file.stem for file in (paths.conf() / group).glob("*.yaml"))


def _list_for_one(argument: str) -> str | None:
    """What is wrong with `group=[a,b]` where the group takes one option, of which Hydra would take the last."""
    given = re.fullmatch(r"\+?([\w/]+)(?:@[\w.]+)?=\[(.+)\]", argument)
    if given is None or "," not in given[2]:
        return None
    named = [paths.conf() / given[1] / f"{option.strip()}.yaml" for option in given[2].split(",")]
    one = any(re.search("^_target_:", f.read_text(encoding="utf-8"), re.MULTILINE) for f in named if f.exists())
    return f"{argument}: {given[1]} takes one option; with -m, {given[1]}={given[2]} is a run of each" if one else None


def _keys() -> list[str]:
    """Every key that some option of some group has."""
    keys: set[str] = set()
    for file in paths.conf().rglob("*.yaml"):
        keys.update(re.findall(r"^\s*([a-z_]+):", file.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return sorted(keys)


def make_absolute(config: DictConfig | ListConfig, files: bool = False) -> None:
    """Local paths as absolute ones, so that the saved configuration works from any folder. Changes the configuration.

    Args:
        config: Resolved.
        files: Whether every text in it is a path, as below a key `files` and in a list of paths.
    """
    items: Iterable[tuple[Any, Any]] = enumerate(config) if isinstance(config, ListConfig) else config.items()
    for key, value in items:
        paths_here = files or str(key).endswith(("path", "init", "tokenizer", "reranker"))
        if isinstance(value, DictConfig):
            make_absolute(value, files or key == "files")
        elif isinstance(value, ListConfig):
            make_absolute(value, paths_here or key == "files")
        elif isinstance(value, str) and paths_here:
            there = Path(value).expanduser()
            if there.exists():
                config[key] = str(there.resolve())
