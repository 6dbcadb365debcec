"""A table of token vectors in place of a network: a text is the normalised sum of its tokens' rows.

Paper: Tulkens & van Dongen 2024, model2vec, https://github.com/MinishLab/model2vec
Relations: the folder is one of sentence-transformers' StaticEmbedding and Normalize, and loads there, too;
compression/static.py makes the table out of an encoder.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from unitsphere.digest import digest, tokenizer_identity
from unitsphere.encoders.reader import Reader
from unitsphere.model import Model
from unitsphere.types import Passes, Text, Tokens

MODULES = (("", "StaticEmbedding"), ("1_Normalize", "Normalize"))


class StaticModel(nn.Module, Model):
    """z = sum_t e_t / || sum_t e_t ||, over the tokens t of a text; the zero vector where no token has a row.

    Args:
        table: (V, dim), with rows of zeros for tokens that do not count, as special ones.
        tokenizer: A fast tokenizer of transformers.
        max_length: The longest input in tokens, special ones included; longer texts are cut.
    """

    def __init__(self, table: Tensor, tokenizer: Any, max_length: int):
        nn.Module.__init__(self)
        self.encoder = Reader(tokenizer, max_length)
        self.embedding = nn.Embedding.from_pretrained(table.float())
        self.dim = table.shape[1]
        self.normalize, self.prompts = True, {}
        self.read: dict[tuple[str, int], tuple[int, int]] = {}  # see `counting`

    def forward(self, tokens: Tokens) -> Tensor:
        """Padded tokens (B, T) to vectors (B, dim)."""
        rows = self.embedding(tokens.ids) * tokens.mask[..., None]  # (B, T, dim) x (B, T, 1)
        return F.normalize(rows.sum(dim=1), dim=-1)

    def through(self, passes: Passes, texts: Sequence[Text]) -> Tensor:
        return passes(texts, self)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def pass_tokens(self) -> int:
        return 2**16  # looking rows up takes less than a pass costs beside

    def protocol(self) -> dict[str, Any]:
        return {
            "pooling": "static",
            "normalize": True,
            "prompts": {},
            "max_length": self.encoder.max_length,
            "precision": "float32",
        }

    def identity(self) -> str:
        parts = (digest(self), self.protocol(), tokenizer_identity(self.encoder.tokenizer))
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def write(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")
        self.encoder.tokenizer.save_pretrained(folder)
        settings = {"load": f"{__name__}.{load.__name__}", "max_length": self.encoder.max_length}
        OmegaConf.save(OmegaConf.create(settings), folder / "unitsphere.yaml")
        # sentence-transformers reads with the tokenizer alone, and without special tokens
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.no_padding()
        backend.enable_truncation(self.encoder.max_length - sum(self.encoder.frame()))
        backend.save(str(folder / "tokenizer.json"))
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(MODULES)
        ]
        (folder / "1_Normalize").mkdir()
        (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> StaticModel:
    """What `StaticModel.write` has written; `artefact.load` calls it."""
    settings = OmegaConf.load(folder / "unitsphere.yaml")
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    return StaticModel(table, AutoTokenizer.from_pretrained(str(folder)), settings.max_length).eval()
