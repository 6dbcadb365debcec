"""Imports go down only: the parts know the records that pass between them, and not each other."""

import ast
from pathlib import Path

import unitsphere

ROOT = Path(unitsphere.__file__).parent
LEAVES = {"types", "errors", "paths", "ranks", "similar", "digest", "scripts", "heap", "process"}
ALLOWED = {
    "encoders": LEAVES,
    "pooling": LEAVES,
    "losses": LEAVES,
    "search": LEAVES | {"build", "formats"},
    "formats": LEAVES,
    "compression": LEAVES
    | {"model", "embedder", "encoders", "losses", "static", "formats", "graph", "tracing", "coded", "search"},
    "graph": LEAVES | {"model", "encoders"},
    "tracing": LEAVES | {"model", "encoders", "embedder", "graph"},
    "export": LEAVES | {"model", "embedder", "encoders", "graph", "tracing", "artefact", "modules_json", "compression"},
    "bench": LEAVES | {"model", "artefact", "training"},
    "contenders": LEAVES | {"bench", "artefact", "build", "cli", "embedder", "losses", "runs", "training"},
    "data": LEAVES | {"formats"},
    "mining": LEAVES | {"search"},
    "evaluation": LEAVES | {"formats", "search"},
    "runs": LEAVES,
    "build": LEAVES,
    "report": LEAVES | {"runs"},
    "card": LEAVES | {"runs", "report", "encoders"},
    "model": LEAVES | {"encoders"},
    "static": LEAVES | {"encoders", "model"},
    "serving": LEAVES | {"model", "encoders"},
    "embedder": LEAVES | {"encoders", "pooling", "model"},
    "modules_json": LEAVES | {"embedder", "pooling"},
    "artefact": LEAVES | {"encoders", "pooling", "model", "embedder", "modules_json", "build"},
    "coded": LEAVES | {"model", "artefact", "search"},
    "training": LEAVES | {"model", "data", "mining", "evaluation", "encoders", "embedder", "artefact", "build", "runs"},
    "workers": LEAVES | {"model", "artefact"},
    "mteb": LEAVES | {"artefact", "embedder", "evaluation"},
}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "unitsphere":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_imports_go_down_only():
    wrong = []
    for file in ROOT.rglob("*.py"):
        layer = file.relative_to(ROOT).parts[0].removesuffix(".py")
        allowed = ALLOWED.get(layer)
        if allowed is not None:
            wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in imported(file) - allowed - {layer}]
    assert not wrong


def test_every_layer_is_named():
    layers = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert layers - set(ALLOWED) - LEAVES - {"cli", "__init__", "__main__", "__pycache__"} == set()
