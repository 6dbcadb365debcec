"""Low-rank adaptation: a frozen weight matrix W becomes W + (alpha / r) B A, and only A and B are trained.

Paper: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685. Code: https://github.com/huggingface/peft
"""

import copy
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from unitsphere.errors import UsageError


def add_lora(
    model: Any, r: int = 8, alpha: int = 16, dropout: float = 0.0, modules: str | Sequence[str] = "all-linear"
) -> None:
    """Put low-rank matrices into the model's linear layers and freeze the rest.

    Args:
        model: Changed in place.
        r: Rank.
        alpha: The update is scaled by alpha / r.
        dropout: Before A.
        modules: Names of linear layers, e.g. [q_proj, v_proj]; "all-linear" is all.

    Raises:
        UsageError: peft refuses a setting, or the model has no such layers.
    """
    names = modules if isinstance(modules, str) else list(modules)
    try:
        inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names), model)
    except ValueError as error:
        raise UsageError(f"encoder.lora: {str(error).splitlines()[0]}") from error


def merged(model: Any) -> Any:
    """The model with every W + (alpha / r) B A as one matrix: a copy, or the model itself where it has no LoRA."""
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model
