"""What a step of `compression=[…]` is. Steps change a model; none of them trains: a step that needs training says with
which overrides of train.yaml, and the verb carries that out as an ordinary run."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.model import Model

Stage = Literal["before", "loss", "after", "vector"]
STAGES: tuple[Stage, ...] = ("before", "loss", "after", "vector")
WHAT = {
    "before": "changes the torch weights",
    "loss": "trains them with another loss",
    "after": "turns the weights into what is executed",
    "vector": "changes the vectors that come out",
}


@dataclass(frozen=True)
class Context:
    """What a step may read besides the model.

    Attributes:
        pairs: Training rows (query, document); of data without pairs, and of scored ones, every text
            twice.
        max_length: Tokens of a text that training and calibration read.
        folder: Empty, the step's own, for what it writes on its way.
        seed: Of whatever it draws.
        scorer: Gives what scores a model on dev, larger is better; None where nothing does.
    """

    pairs: Sequence[tuple[str, str]]
    max_length: int | None
    folder: Path
    seed: int = 1
    scorer: Callable[[], Callable[[Model], float] | None] = lambda: None

    def sample(self, model: Model, count: int) -> list[str]:
        """`count` texts of the pairs with their prompts (all, where there are fewer), drawn by the seed.

        Raises:
            UsageError: There are no training rows.
        """
        query, document = (model.prompts.get(role, "") for role in ("query", "document"))
        texts = list(dict.fromkeys(t for q, d in self.pairs for t in (query + q, document + d)))
        if not texts:
            raise UsageError("this step reads training texts, and there are none: data=… names some")
        return random.Random(self.seed).sample(texts, min(count, len(texts)))


class Step(ABC):
    """A model in, a smaller one out.

    Attributes:
        stage: Where in a chain it may stand: stages never go back.
        ends: Whether no other step of its stage can follow, as of one that turns vectors into bytes.
        recovery: Overrides of train.yaml for a run that starts from what `apply` returned; in them `{original}` is the
            folder of the model that the chain began with. Empty where it needs no training.
        undone: Whether a training after it would undo it.
        network: Whether what it leaves has one, which a later step of weights or of what is executed could change.
    """

    stage: ClassVar[Stage]
    ends: ClassVar[bool] = False
    undone: ClassVar[bool] = False
    network: ClassVar[bool] = True
    recovery: Sequence[str] = ()

    @abstractmethod
    def apply(self, model: Model, context: Context) -> Model:
        """The changed model. The one given may be changed in place; it is not used again.

        Raises:
            UsageError: It cannot be done with this model; what could is named.
        """

    def width(self, dim: int) -> int:
        """Of the vectors that come out, where vectors of `dim` numbers come in.

        Raises:
            UsageError: It cannot be done with these; what could is named.
        """
        return dim


def trainable(model: Model, step: str) -> Embedder:
    """The model as one with torch weights, which a step of stage "before" changes.

    Raises:
        UsageError: It has none.
    """
    if not isinstance(model, Embedder):
        raise UsageError(f"{step} changes torch weights, and a {type(model).__name__} has none: let it come earlier.")
    return model


def check_chain(steps: Mapping[str, Any]) -> None:
    """Whether steps may follow each other in this order.

    Raises:
        UsageError: It names the two that stand the wrong way round, or that exclude each other.
    """
    before: tuple[str, Step] | None = None
    undone: str | None = None
    for name, step in steps.items():
        if step.recovery and undone is not None:
            raise UsageError(f"compression={','.join(steps)}: the training of {name} would undo {undone}")
        undone = name if step.undone else undone
        if before is not None:
            earlier, last = before
            if STAGES.index(step.stage) < STAGES.index(last.stage):
                raise UsageError(
                    f"compression={','.join(steps)}: {name} {WHAT[step.stage]} and cannot come after {earlier}, which "
                    f"{WHAT[last.stage]}. An order that fits: [{','.join(_in_order(steps))}]"
                )
            if not last.network and step.stage != "vector":
                raise UsageError(
                    f"compression={','.join(steps)}: {earlier} leaves no network, and {name} {WHAT[step.stage]}: only "
                    "what changes vectors can come after it"
                )
            if step.stage == last.stage == "after":
                raise UsageError(
                    f"compression={','.join(steps)}: {earlier} and {name} both decide in which numbers the model is "
                    "executed: choose one"
                )
            if step.stage == last.stage and last.ends:
                fits = "Choose one of the two" if step.ends else f"An order that fits: [{','.join(_in_order(steps))}]"
                raise UsageError(
                    f"compression={','.join(steps)}: {earlier} leaves bytes, and {name} reads numbers. {fits}"
                )
        before = name, step


def _in_order(steps: Mapping[str, Any]) -> list[str]:
    """The names by stage, and in each stage what ends it at its end."""
    return sorted(steps, key=lambda name: (STAGES.index(steps[name].stage), steps[name].ends))
