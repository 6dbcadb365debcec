"""Languages in chosen shares, mixed within a batch.

Papers: Conneau & Lample 2019, XLM, https://arxiv.org/abs/1901.07291; Conneau et al. 2020, XLM-R,
https://arxiv.org/abs/1911.02116, whose exponent alpha = 0.3 is temperature 3.3.
Relations: TaskHomogeneous draws tasks in the same way, a batch at a time.
"""

from collections.abc import Mapping

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import checked_temperature, drawn, members, numpy_generator, tempered
from unitsphere.errors import UsageError


class LanguageBalanced:
    """The language of each place in a batch is drawn with probability w_l n_l^(1 / temperature) / sum.

    n_l is the number of rows of language l: temperature 1 keeps their shares, large ones make the languages equal. An
    epoch has as many places as the rows would fill; a language that runs out is shuffled anew, so the rows of a
    favoured one come several times an epoch, and some of another not at all. Where two of a language's rounds meet in
    a batch, a row may be in it twice; losses mask equal texts.

    A row's language is the column `language`, or, where the data has none, its task: the sources of `data=mixture`
    may be one a language.

    Args:
        temperature: 1 or more.
        weights: Language -> w_l; 1 where it is not named, 0 leaves a language out.

    Raises:
        UsageError: The rows have no languages, a weight names none of them or is negative, or a language is expected
            to have more places in a batch than it has rows.
    """

    def __init__(self, temperature: float = 1.0, weights: Mapping[str, float] | None = None):
        self.temperature, self.weights = checked_temperature(temperature), dict(weights or {})
        if any(weight < 0 for weight in self.weights.values()):
            raise UsageError(f"sampler.weights={self.weights}: weights of 0 or more would fit.")

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        given = rows.language or rows.task
        if given is None:
            raise UsageError(
                "sampler=language_balanced needs a language column, +data.columns.language=…, or a source a language: "
                "data=mixture"
            )
        languages = members(given)
        unknown = self.weights.keys() - languages.keys()
        if unknown:
            raise UsageError(f"sampler.weights: no language {sorted(unknown)[0]!r}; found: {', '.join(languages)}")
        groups, draw = list(languages.values()), numpy_generator(generator)
        share = tempered(groups, self.temperature) * [self.weights.get(name, 1.0) for name in languages]
        if not share.any():
            raise UsageError(f"sampler.weights={self.weights}: every language has weight 0.")
        for (name, of_language), places in zip(languages.items(), share / share.sum() * batch_size, strict=True):
            if len(of_language) < places:
                raise UsageError(
                    f"language {name!r} has {len(of_language)} rows and would have {places:.0f} places in a batch of "
                    f"{batch_size}; lower sampler.temperature, its weight or data.batch_size."
                )
        places = len(rows) // batch_size * batch_size
        return drawn(groups, share, places, 1, draw).reshape(-1, batch_size)
