"""Seconds until the command answers, and until it trains."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf

from unitsphere.errors import UsageError

LIBRARY = "import hydra, omegaconf"  # what no start can do without
FIRST_STEP = """
import sys, time
from pathlib import Path
from omegaconf import OmegaConf
from pytorch_lightning import Callback
from unitsphere.runs import Run
from unitsphere.training.run import train

class Done(Callback):
    def on_train_batch_end(self, *rest):
        Path(sys.argv[2], "first_step").write_text(str(time.time()))
        sys.exit(0)

train(OmegaConf.load(sys.argv[1]), Run.create(Path(sys.argv[2]), "run"), [Done()])
"""


def measure(config: DictConfig) -> dict[str, float]:
    """Of `--help`, `--cfg job` and the first training step, each a new process.

    "own" is what is left of it when the interpreter's start and the import of Hydra are taken off.
    """
    cli = [sys.executable, "-m", "unitsphere", "train"]
    bare = _seconds([sys.executable, "-c", LIBRARY])
    shown = {"--help": _seconds([*cli, "--help"]), "--cfg job": _seconds([*cli, "--cfg", "job"])}
    with TemporaryDirectory() as place:
        saved = Path(place) / "config.yaml"
        saved.write_text(OmegaConf.to_yaml(config))
        began = time.time()
        line = [sys.executable, "-c", FIRST_STEP, str(saved), place]
        ended = subprocess.run(line, capture_output=True, text=True)
        if not (Path(place) / "first_step").exists():
            raise UsageError(f"no step was made: {ended.stderr.strip()[-500:]}")
        first = float((Path(place) / "first_step").read_text()) - began
    own = {f"{name} own s": seconds - bare for name, seconds in shown.items()}
    return {"python and hydra s": bare, **own, "first step s": first}


def _seconds(line: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(line, capture_output=True, check=True)
    return time.perf_counter() - began
