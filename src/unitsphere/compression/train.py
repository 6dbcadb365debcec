"""Steps that only train: what they ask for is in their overrides."""

from collections.abc import Sequence
from typing import ClassVar

from unitsphere.compression.step import Context, Stage, Step, trainable
from unitsphere.model import Model


class Training(Step):
    """A run of train.yaml from the model as it is, e.g. under fake quantisation.

    Args:
        recovery: Its overrides (see `Step`).
    """

    stage: ClassVar[Stage] = "before"

    def __init__(self, recovery: Sequence[str]):
        self.recovery = recovery

    def apply(self, model: Model, context: Context) -> Model:
        return trainable(model, "a step that trains")


class LossTraining(Training):
    """The same with another loss, such as Matryoshka's."""

    stage: ClassVar[Stage] = "loss"
