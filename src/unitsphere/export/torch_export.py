"""A program of torch.export: for AOTInductor (C++), ExecuTorch, or torch.export.load.

Code: https://docs.pytorch.org/docs/stable/export.html
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.export.verify import same
from unitsphere.model import Model
from unitsphere.tracing import Finished, inputs, traced
from unitsphere.types import Tokens

FILE = "model.pt2"


class ToTorchExport:
    """Writes model.pt2, whose inputs are input_ids and attention_mask (and prompt, the number of leading tokens that
    the pooling leaves out, where it does), and the tokenizer.

    Args:
        tolerance: The largest difference of any number of a vector.
    """

    def __init__(self, tolerance: float = 1e-4):
        self.tolerance = tolerance

    def __call__(self, model: Model, folder: Path) -> str:
        """Write into an empty folder, and say how near it is.

        Raises:
            UsageError: It is no torch model, cannot be exported, or computes something else.
        """
        if not isinstance(model, Embedder):
            raise UsageError(f"to=torch_export: a {type(model).__name__} has no torch weights")
        model = model.cpu().float().eval()
        torch.export.save(traced(model, torch.export.export, Finished, inputs(model)), folder / FILE)
        model.encoder.tokenizer.save_pretrained(folder)
        exported = Program(model, folder / FILE)
        return f"largest difference {same(model, exported, self.tolerance):.1e}"


class Program(Embedder):
    """The embedder's reading of texts, with the saved program in the place of its network."""

    def __init__(self, model: Embedder, file: Path):
        super().__init__(
            model.encoder, model.pooling, None, model.normalize, model.prompts, model.pool_prompt, model.windows
        )
        self.dim, self.default_prompt = model.dim, model.default_prompt
        self.program: Any = torch.export.load(file).module()

    def forward(self, tokens: Tokens) -> Tensor:
        given = (tokens.ids, tokens.mask) if self.pool_prompt else (tokens.ids, tokens.mask, tokens.prompt)
        return self.program(*given)

    def eval(self) -> "Program":  # an exported program has no other mode, and refuses to be asked
        return self

    def train(self, mode: bool = True) -> "Program":
        return self
