"""Mine anew while training, with the model as it is: what was hard at the start is not what is hard now.

Paper: Xiong et al. 2020, ANCE, https://arxiv.org/abs/2007.00808 (which refreshes its index as training goes on).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl

from unitsphere.data.batches import Batches
from unitsphere.errors import UsageError
from unitsphere.mining.candidates import asked, with_positives
from unitsphere.mining.filters import Filter
from unitsphere.mining.instructed import Instructed
from unitsphere.mining.miner import Miner
from unitsphere.mining.sources import Source
from unitsphere.runs import write


class Remine(pl.Callback):
    """Before the first step, and every `every` steps, gives the rows of the next `every` batches new negatives.

    They come from these rows' positives, and from others of the data until there are `documents` of them. What was
    mined is kept in `mined/step_<n>.jsonl` in the run's folder, so that a run which was cut goes on with the same
    negatives. Of several ranks, each mines for itself and finds the same.

    Args:
        sources: Name -> where negatives come from (see `mining.sources`).
        filters: Name -> what makes a candidate unfit.
        every: Optimiser steps between two minings.
        documents: To how many documents the rows' own positives are made up by others; None takes all positives.
        max_length: Tokens that the model reads of a text while mining; None is its limit.
        seed: Of the choice of documents.

    Raises:
        UsageError: A number makes no sense, or the data has no positives.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        filters: Mapping[str, Filter],
        every: int = 100,
        documents: int | None = 5000,
        max_length: int | None = None,
        seed: int = 0,
    ):
        if every < 1 or (documents is not None and documents < 1):
            raise UsageError(f"callbacks.remine: every={every} and documents={documents} must be 1 or more.")
        self.sources, self.filters, self.every = sources, filters, every
        self.documents, self.max_length, self.seed = documents, max_length, seed
        self._mined_at = -1

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._mined_at = trainer.global_step // self.every * self.every
        file = self._file(trainer, self._mined_at)
        if file.exists():  # the run was cut since
            with file.open(encoding="utf-8") as lines:  # which end at line feeds alone, unlike `splitlines`
                _batches(trainer).set_negatives(dict(map(json.loads, lines)))
        else:
            self._mine(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self._mined_at and step < trainer.estimated_stepping_batches:
            self._mine(trainer, module)

    def _mine(self, trainer: pl.Trainer, module: Any) -> None:
        self._mined_at = trainer.global_step
        batches = _batches(trainer)
        rows = batches.rows
        if rows.positive is None:
            raise UsageError("callbacks.remine mines for pairs, and the data has no positives.")
        coming = batches.upcoming(self.every * trainer.accumulate_grad_batches).tolist()
        own = dict.fromkeys(rows.positive[i] for i in coming)
        others = [text for text in dict.fromkeys(rows.positive) if text not in own]
        room = len(others) if self.documents is None else max(0, min(self.documents - len(own), len(others)))
        drawn = np.random.default_rng([self.seed, trainer.global_step]).permutation(len(others))[:room]
        documents: Sequence[str] = [*own, *(others[i] for i in drawn)]
        file = self._file(trainer, trainer.global_step)
        file.parent.mkdir(exist_ok=True)
        known = asked(rows.anchor, rows.positive)
        queries = list(dict.fromkeys(rows.anchor[i] for i in coming))
        positives = [known[query] for query in queries]
        documents = with_positives(documents, positives)
        embed = Instructed(module.embedder.embed, rows.instructions)
        with TemporaryDirectory(dir=file.parent) as work:
            for source in self.sources.values():
                source.attach(documents, embed, Path(work), self.max_length)
            mined = Miner(documents, self.sources, self.filters, seed=self.seed)(queries, positives)
        found = dict(zip(queries, ([documents[n.row] for n in negatives] for negatives in mined), strict=True))
        negatives = {row: found[rows.anchor[row]] for row in coming}
        if trainer.is_global_zero:
            write(file, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in negatives.items()))
        batches.set_negatives(negatives)
        average = np.mean([len(several) for several in mined])
        module.print(f"step {trainer.global_step}: mined {average:.1f} negatives for each of {len(queries)} queries")

    def _file(self, trainer: pl.Trainer, step: int) -> Path:
        return Path(trainer.default_root_dir) / "mined" / f"step_{step}.jsonl"


def _batches(trainer: Any) -> Batches:
    return trainer.train_dataloader
