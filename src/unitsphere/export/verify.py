"""Whether what was exported computes what the model computes."""

from collections.abc import Sequence

import numpy as np

from unitsphere.encoders.reader import Reader
from unitsphere.errors import UsageError
from unitsphere.model import Model

COUNT = 256
SOME = ["", " ", "a", "naïve café", "中文句子", "🙂", "x" * 300, "l'été, l'hiver", "tab\tand\nline"]


def texts(reader: Reader, seed: int = 0) -> list[str]:
    """COUNT texts of all lengths up to the longest input and a little beyond, out of the vocabulary; some odd ones."""
    draw = np.random.default_rng(seed)
    special = set(reader.tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(reader.tokenizer)) if i not in special])
    lengths = np.geomspace(1, reader.max_length + 8, COUNT - len(SOME)).astype(int)
    return [*SOME, *(reader.tokenizer.decode(draw.choice(ordinary, int(n)).tolist()) for n in lengths)]


def same(model: Model, exported: Model, tolerance: float, names: Sequence[str] = ("the model", "the export")) -> float:
    """The largest difference of any number of any vector, over `texts`, for every role that has a prompt.

    Raises:
        UsageError: It is above the tolerance, or not a number.
    """
    worst = 0.0
    for role in (None, *model.prompts):
        of_model, of_export = (m.encode(texts(model.encoder), role=role) for m in (model, exported))
        worst = float(np.maximum(worst, np.abs(of_model - of_export).max()))
    if not worst <= tolerance:
        raise UsageError(f"{names[1]} differs from {names[0]} by {worst:.2g}, over {tolerance:g}: nothing is written")
    return worst


def near(model: Model, exported: Model, cosine: float, batch_tokens: int | None = None) -> float:
    """The mean cosine between the two models' vectors, over `texts`.

    Args:
        model: What was exported.
        exported: What came out.
        cosine: The least that will do.
        batch_tokens: Padded tokens a pass of what came out, as of `Model.encode`.

    Raises:
        UsageError: It is below `cosine`.
    """
    some = texts(model.encoder)
    a, b = model.encode(some), exported.encode(some, batch_tokens=batch_tokens)
    found = float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())
    if not found >= cosine:
        raise UsageError(
            f"the export has a mean cosine of {found:.3f} with the model, below {cosine}: nothing is written"
        )
    return found
