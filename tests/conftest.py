"""Small things that many tests need. No test reaches a network; those that need the shared data skip without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from hydra import compose, initialize_config_dir

from unitsphere import paths
from unitsphere.cli.hydra_app import resolved
from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.pooling.mean import MeanPooling

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDS = [
    "red",
    "green",
    "blue",
    "old",
    "new",
    "fast",
    "slow",
    "big",
    "small",
    "warm",
    "cold",
    "cat",
    "dog",
    "fish",
    "bird",
    "tree",
    "house",
    "car",
    "road",
    "river",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """A cache for the whole session that is not the user's; and no data folder unless a test sets one."""
    monkeypatch.setenv("UNITSPHERE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("UNITSPHERE_DATA", raising=False)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data sets at {SHARED}")
    return SHARED


@pytest.fixture
def embedder() -> Embedder:
    encoder = tiny()
    return Embedder(encoder, MeanPooling(encoder.dim)).eval()


@pytest.fixture
def pairs(tmp_path) -> Path:
    """120 pairs of made-up sentences that share a word."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(120):
        a, b, c = (WORDS[int(torch.randint(len(WORDS), (), generator=generator))] for _ in range(3))
        rows.append(
            {"anchor": f"{a} {b} number {i}", "positive": f"the {a} {b} and {c} of {i}", "negative": f"no {c} {i}"}
        )
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def composed(*overrides: str, root: str = "train"):
    """A resolved configuration."""
    with initialize_config_dir(str(paths.conf()), version_base="1.3"):
        return resolved(compose(root, [*overrides, *(["name=test"] if root in ("train", "mine") else [])]))


def command(*arguments: object, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """Run `unitsphere …` in a process of its own."""
    line = [sys.executable, "-m", "unitsphere", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, **kwargs)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def browsed(file: Path) -> subprocess.CompletedProcess:
    """The page as headless Chromium has it (stdout) and what its console says (stderr)."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    line = ["chromium", *options, f"--user-data-dir={file.parent / 'profile'}", f"file://{file}"]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)
