"""The one LightningModule: every objective trains through it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from unitsphere import ranks
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.evaluation.geometry import mean_cosine
from unitsphere.evaluation.score import score
from unitsphere.training.chunks import LengthSorted, embeddings
from unitsphere.training.gather import gather
from unitsphere.training.gradient_cache import GradientCache
from unitsphere.training.sharding import shard, sharded
from unitsphere.training.together import SharedEmbed, clock, together
from unitsphere.types import Batch, Embed, Evaluator, Loss, Result


class EmbeddingModule(pl.LightningModule):
    """Encode a batch, put the ranks together, ask the loss.

    Args:
        embedder: What is trained.
        loss: A `types.Loss`; its own parameters, if any, are trained too.
        optim: Called with this module and the number of steps; returns optimiser and scheduler.
        dev: Evaluators of the dev split, which choose the checkpoint.
        eval_seconds: That each may take (see `evaluation.score`).
        untrained: Makes what embeds dev's texts before the first step, e.g. out of a cache; None is the embedder.
    """

    def __init__(
        self,
        embedder: Embedder,
        loss: Loss,
        optim: Any,
        dev: Sequence[Evaluator],
        eval_seconds: float | None = None,
        untrained: Callable[[], Embed] | None = None,
    ):
        super().__init__()
        self.embedder = embedder
        self.loss: Any = loss
        self.optim = optim
        self.dev = dev
        self.read_dev: dict[tuple[str, int], tuple[int, int]] = {}  # how many texts the last look cut
        self.eval_seconds, self.untrained = eval_seconds, untrained

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is None:
            return
        trainer: Any = self.trainer
        if trainer.cache_tokens is not None:  # ranks with unequal numbers of passes would wait for ever
            raise UsageError("trainer.cache_tokens does not go with trainer=fsdp; encoder.gradient_checkpointing does")
        shard(self.embedder, self.loss, mesh["data_parallel"])

    def on_fit_start(self) -> None:
        trainer: Any = self.trainer
        if trainer.packed and not sharded(self.embedder):
            self.embedder.encoder.pack(trainer.chunks)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        e = gather(embeddings(self.embedder, batch, self.loss.views, self.passes()))
        out = self.loss(e)
        rows = len(e.batch.row_ids)
        self.log("step", float(self.global_step + 1))  # Lightning counts from 0, dev scores and checkpoints from 1
        self.log("train/loss", out.total, prog_bar=True, batch_size=rows)
        if e.anchors:
            with torch.no_grad():
                spread = mean_cosine(nn.functional.normalize(e.anchors[0].float(), dim=-1))
            self.log("train/mean_cosine", spread, batch_size=rows)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=rows)
        for name, value in out.parts.items():
            self.log(f"train/{name}", value, batch_size=rows)
            if self.global_step == batch_idx == 0 and name.endswith("negatives"):
                self.print(f"each anchor meets {float(value):.1f} negatives on average, out of {rows} rows in all")
        return out.total

    def passes(self) -> LengthSorted:
        """How a batch goes through the encoder, by the trainer's settings."""
        trainer: Any = self.trainer
        pad, tokens = self.embedder.encoder.pad, trainer.cache_tokens
        if tokens is None:
            return LengthSorted(pad, trainer.chunks, self.device)
        return GradientCache(pad, tokens, self.device, [p for p in self.parameters() if p.requires_grad])

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.optim(self, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def score_dev(self) -> Result:
        """The embedder as it is now, on dev. Of several ranks, every one must call this."""
        with self.embedder.counting() as self.read_dev:
            if not ranks.several():
                untrained = self.untrained if self.global_step == 0 else None
                embed = untrained() if untrained is not None else self.embedder.embed
                return score(self.dev, embed, self.eval_seconds)
            divided = not sharded(self.embedder)
            embed = SharedEmbed(self.embedder.embed, self.device, divided)
            result = together(lambda: score(self.dev, embed, self.eval_seconds, clock))
        if divided:
            self.read_dev = ranks.summed(self.read_dev)
        return result
