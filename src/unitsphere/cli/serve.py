"""`unitsphere serve`: a model behind HTTP."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError

T = TypeVar("T")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    hydra_app.run("serve", job, arguments)


def job(config: DictConfig) -> None:
    """Load the model and answer requests until a signal ends it."""
    config = hydra_app.resolved(config)
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: pip install 'unitsphere[serve]'")

    import torch

    from unitsphere import artefact
    from unitsphere.build import build
    from unitsphere.process import cpu_threads, quiet
    from unitsphere.report.table import show
    from unitsphere.serving.app import create_app
    from unitsphere.serving.gate import Door
    from unitsphere.serving.server import Server, listen
    from unitsphere.serving.settings import Process, Settings

    quiet()
    if config.threads == "auto":
        config.threads = cpu_threads()
    keys: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    keys |= {"name": config.name or called(config.model), "api_key": api_key(config.api_key_env)}
    settings, process = checked(Settings, keys), checked(Process, keys)
    torch.set_num_threads(process.threads)
    model = artefact.load(config.model).to("cuda" if torch.cuda.is_available() else "cpu")
    reranker = build(config.cross_encoder, path=config.reranker) if config.reranker is not None else None
    door = Door()
    app = create_app(model, reranker, settings, door)
    with listen(process.host, process.port) as listener:
        host, port = listener.getsockname()[:2]
        show(f"{settings.name}, {model.dim} numbers a vector, on http://{host}:{port} (/docs, /health, /metrics)")
        Server(app, door, process.grace_seconds).run(sockets=[listener])


def checked(kind: Callable[..., T], keys: Mapping[str, Any]) -> T:
    """A dataclass of serving/settings.py out of the configuration's keys of the same names.

    Raises:
        UsageError: A value does not fit.
    """
    from pydantic import ValidationError

    try:
        return kind(**{name: keys[name] for name in signature(kind).parameters})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}={first['input']}: {first['msg']}") from None


def called(model: str) -> str:
    """A folder's name; of a run, with that of its parent (simcse-mean/s1_…); a hub id as it is."""
    folder = Path(model).expanduser()
    if not folder.exists():
        return model
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if (folder / "run.json").exists() else folder.name


def api_key(variable: str | None) -> str | None:
    """The key that requests must bear, without the blanks and line ends around it, as of a file that was read.

    Raises:
        UsageError: The variable that should hold it is not set, or holds nothing but blanks.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"api_key_env={variable}: this environment variable is not set, or empty.")
    return key
