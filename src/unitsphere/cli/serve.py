"""`unitsphere serve`: a model behind HTTP."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError


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
    from unitsphere.encoders.cross_encoder import CrossEncoder
    from unitsphere.report.table import show
    from unitsphere.serving.app import create_app
    from unitsphere.serving.gate import Door
    from unitsphere.serving.server import Server, listen
    from unitsphere.serving.settings import Limits, Settings
    from unitsphere.training.run import quiet
    from unitsphere.training.trainer import cpu_threads

    quiet()
    settings = Settings(
        name=config.name or called(config.model),
        api_key=api_key(config.api_key_env),
        limits=Limits(**config.limits),
        **{key: config[key] for key in ("role", "on_long", "batch_tokens", "wait_ms", "cache_mib")},
    )
    torch.set_num_threads(cpu_threads() if config.threads == "auto" else config.threads)
    model = artefact.load(config.model).to("cuda" if torch.cuda.is_available() else "cpu")
    reranker = CrossEncoder(config.reranker) if config.reranker is not None else None
    door = Door()
    app = create_app(model, reranker, settings, door)
    with listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        show(f"{settings.name}, {model.dim} numbers a vector, on http://{host}:{port} (/docs, /health, /metrics)")
        Server(app, door, config.grace_seconds).run(sockets=[listener])


def called(model: str) -> str:
    """A folder's name; of a run, with that of its parent (simcse-mean/s1_…); a hub id as it is."""
    folder = Path(model).expanduser()
    if not folder.exists():
        return model
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if (folder / "run.json").exists() else folder.name


def api_key(variable: str | None) -> str | None:
    """The key that requests must bear.

    Raises:
        UsageError: The variable that should hold it is not set, or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise UsageError(f"api_key_env={variable}: this environment variable is not set, or empty.")
    return key
