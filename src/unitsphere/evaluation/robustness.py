"""Any evaluator on noisy queries: how much does a model lose when people type as they do?

Papers: Belinkov & Bisk 2018, https://arxiv.org/abs/1711.02173; Zhuang & Zuccon 2021, dense retrieval and queries with
typos, https://arxiv.org/abs/2108.12139.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.evaluation.suffixed import suffixed
from unitsphere.types import Embed, Result

Noise = Callable[..., str]  # (text, random=…) -> text


class Robustness:
    """Runs an evaluator on clean queries and once a noise; its metrics are `<task>_<noise>/<measure>`, and what is
    lost, clean - noisy, `<task>_<noise>/<measure>_loss`. `<task>_noisy/<measure>`, of the evaluator's primary measure,
    and its loss are means over the noises.

    Documents stay clean; of what has none (STS, classification, …) every text is noisy. The noise of a text is drawn
    from its SHA-256, so every model reads the same. When the time is over, the noises that are finished are reported,
    without their mean.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, or None.
        evaluator: Called with `split` and `own`; returns the evaluator.
        noises: Name -> noise (see noise.py).
        measures: Which of its measures are kept; None is all.
        seed: Another one draws other noise.
    """

    def __init__(
        self,
        split: str,
        own: Any,
        evaluator: Callable[..., Any],
        noises: Mapping[str, Noise],
        measures: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if not noises:
            raise UsageError("eval.robustness.noises is empty: name a noise, e.g. typos")
        self.evaluator, self.noises = evaluator(split=split, own=own), dict(noises)
        self.measures, self.seed = measures, seed

    def held(self) -> Any:
        """What the evaluator inside holds."""
        return self.evaluator.held()

    def __call__(self, embed: Embed) -> Result:
        clean = _whole(self.evaluator(embed))
        noisy: dict[str, Result] = {}
        for name, noise in self.noises.items():
            try:
                noisy[name] = _whole(self.evaluator(self._disturbed(embed, name, noise)))
            except OutOfTime:
                if not noisy:
                    raise
                break
        renamed = {name: suffixed(result, f"_{name}") for name, result in noisy.items()}
        metrics: dict[str, float] = {}
        for result in renamed.values():
            new = zip(result.metrics.items(), clean.metrics.items(), strict=True)
            kept = [(name, value, before) for (name, value), (_, before) in new if self._measured(name)]
            metrics |= {name: value for name, value, _ in kept}
            metrics |= {f"{name}_loss": before - value for name, value, before in kept}
        task, _, measure = clean.primary.partition("/")
        finished, mean = len(noisy) == len(self.noises), f"{task}_noisy/{measure}"
        settings = {name: _settings(noise) for name, noise in self.noises.items()}
        protocol = {
            task: {**stamp, "noise": name, "settings": settings[name], "seed": self.seed}
            for name, result in renamed.items()
            for task, stamp in result.protocol.items()
        }
        if finished:
            metrics[mean] = float(np.mean([result.metrics[clean.primary] for result in noisy.values()]))
            metrics[f"{mean}_loss"] = clean.metrics[clean.primary] - metrics[mean]
            whole = {"settings": settings, "seed": self.seed}
            protocol |= {f"{task}_noisy": {**stamp, **whole} for task, stamp in clean.protocol.items()}
        else:
            protocol["robustness"] = {"stopped": f"{len(noisy)} of {len(self.noises)} noises"}
        return Result(
            metrics=metrics,
            primary=mean,
            items={task: table for result in renamed.values() for task, table in result.items.items()},
            protocol=protocol,
        )

    def _measured(self, metric: str) -> bool:
        return self.measures is None or metric.rpartition("/")[2] in self.measures

    def _disturbed(self, embed: Embed, name: str, noise: Noise) -> Embed:
        """`embed` with `noise` on all texts but documents."""

        def disturbed(
            texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
        ) -> np.ndarray:
            if role != "document":
                texts = [noise(text, random=self._chance(name, text)) for text in texts]
            return embed(texts, role, max_length, prompt)

        return disturbed

    def _chance(self, name: str, text: str) -> Random:
        drawn = hashlib.sha256(f"{self.seed} {name} {text}".encode("utf-8", "surrogatepass")).digest()
        return Random(int.from_bytes(drawn, "big"))


def _whole(result: Result) -> Result:
    """The result itself, where all of it is there: a part is not held against another part."""
    if any("stopped" in stamp for stamp in result.protocol.values()):
        raise OutOfTime([])
    return result


def _settings(noise: Any) -> str:
    """A noise as it is configured, e.g. "typos rate=0.1"."""
    options = getattr(noise, "keywords", None) or getattr(noise, "settings", {})
    name = getattr(getattr(noise, "func", noise), "__name__", type(noise).__name__)
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])
