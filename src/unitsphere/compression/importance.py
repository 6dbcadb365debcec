"""How much each attention head or intermediate neuron matters.

Papers: Michel et al. 2019, Are sixteen heads really better than one?, https://arxiv.org/abs/1905.10650 (equation 2);
Molchanov et al. 2017, https://arxiv.org/abs/1611.06440 (first-order Taylor expansion; scores over their layer's norm).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unitsphere.compression.step import Context
from unitsphere.embedder import Embedder
from unitsphere.encoders.pruned import Units
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import info_nce
from unitsphere.types import Text, Tokens


def gradient(
    embedder: Embedder, layers: Sequence[Units], context: Context, pairs: int, batch_size: int, temperature: float
) -> list[Tensor]:
    """I_u = sum over texts x of | sum over the tokens of x of a_u · dL / da_u |.

    a_u is what unit u hands to the matrix behind it, L the InfoNCE of a batch of training pairs with in-batch
    negatives: I_u is, to first order, by how much L changes where u is taken out. If the two texts of every pair are
    equal, as with data without pairs, dropout makes two views of them; else it is off.

    Args:
        embedder: Left in the mode of evaluation.
        layers: Its heads or neurons.
        context: Of the step.
        pairs: How many are read, drawn at random.
        batch_size: Pairs of a batch.
        temperature: Of L.

    Returns:
        (units) a layer.

    Raises:
        UsageError: The pairs tell nothing: there are less than two, or all are the same.
    """
    chosen = np.random.default_rng(context.seed).permutation(len(context.pairs))[:pairs]
    rows = [context.pairs[i] for i in chosen]
    totals = [torch.zeros(layer.count) for layer in layers]
    embedder.train(all(query == document for query, document in rows))
    with torch.enable_grad(), torch.random.fork_rng(), ExitStack() as hooks:
        torch.manual_seed(context.seed)
        handed: list[list[Tensor]] = [[] for _ in layers]
        for layer, inputs in zip(layers, handed, strict=True):
            hooks.callback(layer.behind.register_forward_pre_hook(_keeping(inputs)).remove)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            queries, documents = (
                _vectors(embedder, [row[side] for row in some], role, context.max_length)
                for side, role in enumerate(("query", "document"))
            )
            info_nce(queries, documents, _same(some), temperature).backward()
            for total, layer, inputs in zip(totals, layers, handed, strict=True):
                for a in inputs:  # (B, T, units * size)
                    assert a.grad is not None
                    of_texts = (a * a.grad).detach().sum(dim=1).unflatten(-1, (layer.count, layer.size)).sum(dim=-1)
                    total += of_texts.abs().sum(dim=0).cpu()
                inputs.clear()
            embedder.zero_grad()
    embedder.eval()
    if not any(total.any() for total in totals):
        raise UsageError(f"importance=gradient: {len(rows)} training pairs, of which none has another as its negative.")
    return totals


def magnitude(layers: Sequence[Units]) -> list[Tensor]:
    """I_u = the L2 norm of all weights of unit u: its rows of the matrices before, its columns of the one behind."""

    def squares(rows: Tensor, layer: Units) -> Tensor:
        return rows.detach().cpu().square().sum(dim=1).unflatten(0, (layer.count, layer.size)).sum(dim=1)

    return [
        sum((squares(linear.weight, layer) for linear in layer.before), squares(layer.behind.weight.T, layer)).sqrt()
        for layer in layers
    ]


def random(layers: Sequence[Units], seed: int) -> list[Tensor]:
    """The control."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(layer.count, generator=generator) for layer in layers]


def best(importance: Sequence[Tensor], keep: float, per_layer: bool, least: int) -> list[list[int]]:
    """The most important units of each layer, in their order.

    Args:
        importance: (units) a layer.
        keep: The share of them that stays, in (0, 1].
        per_layer: Of each layer that share; else of all together, with every layer's scores over their L2 norm.
        least: How many stay of a layer in any case.
    """
    ranked = [scores.argsort(descending=True, stable=True).tolist() for scores in importance]
    if per_layer:
        return [sorted(of_layer[: max(least, round(keep * len(of_layer)))]) for of_layer in ranked]
    kept = [of_layer[:least] for of_layer in ranked]
    scaled = [scores / scores.norm().clamp(min=1e-12) for scores in importance]
    others = [(-float(scaled[i][unit]), i, unit) for i, of_layer in enumerate(ranked) for unit in of_layer[least:]]
    room = round(keep * sum(map(len, ranked))) - sum(map(len, kept))
    for _, i, unit in sorted(others)[: max(room, 0)]:
        kept[i].append(unit)
    return [sorted(of_layer) for of_layer in kept]


def _keeping(inputs: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A forward pre-hook that keeps a module's input, and will know its gradient."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        arguments[0].retain_grad()
        inputs.append(arguments[0])

    return hook


def _vectors(embedder: Embedder, texts: Sequence[str], role: str, max_length: int | None) -> Tensor:
    """(B, dim), with gradients."""
    encoder, prompt = embedder.encoder, embedder.prompts.get(role, "")
    length = encoder.prompt_length(prompt)

    def at_once(texts: Sequence[Text], function: Callable[..., Tensor], *rows: Any) -> Tensor:
        tokens = encoder.pad(texts)
        return function(Tokens(*(x.to(embedder.device) for x in (tokens.ids, tokens.mask, tokens.prompt))), *rows)

    ids = encoder.tokenize([prompt + text for text in texts], max_length)
    return embedder.through(at_once, [Text(of_text, length) for of_text in ids])


def _same(pairs: Sequence[tuple[str, str]]) -> Tensor:
    """(N, N): True where document j is no negative of query i, as they or their partners are the same text."""
    return torch.tensor(
        [[i != j and bool({*a} & {*b}) for j, b in enumerate(pairs)] for i, a in enumerate(pairs)]
    )  # fmt: skip
