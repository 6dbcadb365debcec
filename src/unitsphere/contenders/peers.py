"""The same work by sentence-transformers: the same model, texts, order, lengths, batch, precision and loss.

Its process builds no encoder of ours, which would change how the C library keeps memory (`unitsphere.heap`).

Code: https://github.com/huggingface/sentence-transformers
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.utils import get_method
from omegaconf import DictConfig

from unitsphere import artefact
from unitsphere.bench.child import measured
from unitsphere.bench.meter import Meter
from unitsphere.bench.peak import multiplied_in
from unitsphere.build import build
from unitsphere.contenders.encode import texts_of
from unitsphere.contenders.train import check_steps
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.simcse import SimCSE


def metered(model: Any) -> Meter:
    """Of a SentenceTransformer."""
    return Meter(model[0].auto_model, model, lambda args: args[0]["attention_mask"])


def written(config: DictConfig, embedder: str, folder: str, max_length: int | None) -> dict[str, int | None]:
    """Save what the function `embedder` makes of the configuration, and tell how many tokens it reads of a text.

    Raises:
        UsageError: It is no torch model.
    """
    made = get_method(embedder)(config)
    if not isinstance(made, Embedder):
        raise UsageError(f"peer=sentence_transformers: model={config.model} is a {type(made).__name__}.")
    artefact.save(made, Path(folder))
    return {"limit": made.encoder.limit(max_length)}


def loaded(config: DictConfig, embedder: str, max_length: int | None) -> Any:
    """What the function `embedder` makes of the configuration, in sentence-transformers.

    Raises:
        UsageError: It is not installed; see also `written`.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            "peer=sentence_transformers needs that library: pip install sentence-transformers accelerate"
        ) from error
    with TemporaryDirectory() as place:
        options: dict[str, Any] = {"embedder": embedder, "folder": place, "max_length": max_length}
        limit = measured(f"{__name__}.{written.__name__}", config, torch.get_num_threads(), options)["limit"]
        model = SentenceTransformer(place)
    model.max_seq_length = limit
    return model


def check_same_work(config: DictConfig, loss: Any, columns: Sequence[str]) -> None:
    """Whether `train` below does what ours does with this configuration.

    Raises:
        UsageError: It names what it does not do.
    """
    if type(loss) not in (SimCSE, InfoNCE):
        raise UsageError("peer=sentence_transformers: loss=simcse and infonce can be compared.")
    other = {f"loss.{key}": getattr(loss, key, 0) for key in ("symmetric", "class_prior", "hard_negative_weight")}
    other |= {
        "loss.fixed_mask": isinstance(loss, SimCSE) and loss.views == 1,
        "negatives of a row's own": isinstance(loss, InfoNCE) and "negative" in columns,
        "instructions": "instruction" in columns,
        "embedder.prompts": any(config.embedder.prompts.values()),
        "encoder.lora": config.encoder.get("lora"),
        "trainer.accumulate_grad_batches": config.trainer.accumulate_grad_batches != 1,
        "trainer.precision": config.trainer.precision not in ("32-true", "bf16-mixed"),
        "several GPUs": config.trainer.accelerator != "cpu" and torch.cuda.device_count() > 1,
    }
    if named := [what for what, differs in other.items() if differs]:
        raise UsageError(f"peer=sentence_transformers is not compared with {', '.join(named)}: it would do other work")


def train(config: DictConfig, steps: int, warm: int) -> dict[str, Any]:
    """`contenders.train.measure` by SentenceTransformerTrainer: AdamW, clipped gradients, no logging, no evaluation.

    Raises:
        UsageError: The library is not installed, or would do other work.
    """
    check_steps(steps, warm)
    data, loss = build(config.data), build(config.loss)
    check_same_work(config, loss, data.columns)
    columns = {"anchor": "anchor", "positive": "anchor" if isinstance(loss, SimCSE) else "positive"}
    model = loaded(config, "unitsphere.training.run.build_embedder", config.data.max_length)
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sampler import DefaultBatchSampler
    from transformers import TrainerCallback

    rows, size, count = data.splits.train, config.data.batch_size, warm + steps
    order = build(config.sampler)(rows, size, torch.Generator().manual_seed(config.seed * 1_000_003))
    chosen = [int(row) for number in range(count) for row in order[number % len(order)]]
    dataset = Dataset.from_dict({name: [getattr(rows, of)[i] for i in chosen] for name, of in columns.items()})
    meter = metered(model)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warm:
                meter.start()
            elif state.global_step == count:
                meter.stop()

    class Trainer(SentenceTransformerTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with meter.model():
                return super().training_step(*args, **kwargs)

    dtype = multiplied_in(str(config.trainer.precision))
    with TemporaryDirectory() as place:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=place,
            max_steps=count,
            per_device_train_batch_size=size,
            learning_rate=config.optim.lr,
            bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            batch_sampler=lambda dataset, **options: DefaultBatchSampler(range(len(dataset)), size, True),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_drop_last=True,
        )
        objective = MultipleNegativesRankingLoss(model, scale=1 / loss.temperature)
        Trainer(model, arguments, dataset, loss=objective, callbacks=[Clock()]).train()
    return {**meter.numbers("samples", size * steps, trains=True), "dtype": dtype}


def encode(config: DictConfig, texts: int, max_length: int, bf16: bool, batch_size: int) -> dict[str, Any]:
    """`contenders.encode.measure` by `SentenceTransformer.encode`."""
    chosen = texts_of(config, texts)
    model = loaded(config, "unitsphere.cli.evaluate.embedder_of", max_length)
    if bf16:
        model = model.bfloat16()
    model.encode(chosen[:batch_size], batch_size=batch_size)
    meter = metered(model)
    meter.start()
    model.encode(chosen, batch_size=batch_size)
    meter.stop()
    return {**meter.numbers("texts", len(chosen), trains=False), "dtype": "bfloat16" if bf16 else "float32"}
