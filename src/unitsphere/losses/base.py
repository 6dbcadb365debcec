"""What every loss shares: which columns it reads, and when it makes the networks of its own."""

from typing import Any

from torch import Tensor, nn

from unitsphere.errors import UsageError


class Loss(nn.Module):
    """Base of the losses: `forward(Embeddings) -> LossOutput`.

    Attributes:
        needs: Columns that the data must have.
        optional: Columns read where the data has them; others are neither tokenised nor encoded.
        views: How often an anchor passes the encoder: 2 for SimCSE, 0 for a loss that reads tokens only.
        embeds: Whether the encoder that it trains is meant to embed texts, which a cross-encoder is not.
        any_width: Whether it can read vectors cut to their first numbers, so that Matryoshka can wrap it.
    """

    needs: tuple[str, ...] = ("anchor", "positive")
    optional: tuple[str, ...] = ()
    views = 1
    embeds = True
    any_width = True

    def attach(self, embedder: Any) -> None:
        """Make or load what depends on the embedder (a discriminator, a projection) or is heavy (a teacher)."""


def through(module: nn.Module, z: Tensor) -> Tensor:
    """module(z), with z in the precision of its weights, which `trainer.precision=bf16-true` makes 16-bit."""
    return module(z.to(next(module.parameters(), z).dtype))


def checked_scores(scores: Tensor, lowest: float = 0.0) -> Tensor:
    """Scores, which must lie in [lowest, 1].

    Raises:
        UsageError: One does not.
    """
    if not ((scores >= lowest) & (scores <= 1)).all():
        farthest = float(scores[(scores - (lowest + 1) / 2).abs().argmax()])
        raise UsageError(
            f"a score of {farthest:g} is not in [{lowest:g}, 1]: divide by the largest with data.max_score=5"
        )
    return scores


def checked_temperature(value: float) -> float:
    """A temperature, which must be positive.

    Raises:
        UsageError: It is not.
    """
    if not value > 0:
        raise UsageError(f"loss.temperature={value}: a number over 0 would fit.")
    return value
