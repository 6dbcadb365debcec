"""An embedding function as a model of the mteb package. Importing this module imports mteb.

Paper: Muennighoff et al. 2023, MTEB, https://arxiv.org/abs/2210.07316
Code: https://github.com/embeddings-benchmark/mteb, models/models_protocols.py (EncoderProtocol) and
models/sentence_transformer_wrapper.py, whose choice of prompts this follows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from unitsphere.types import Embed


class MTEBModel(AbsEncoder):
    """Gives mteb the vectors of an `Embed`; similarity is the cosine.

    The prompt of a text is, in this order: the one in `prompts` that mteb's rule picks (`<task>-<query|document>`,
    `<task>`, `<type>-<query|document>`, `<type>`, `query` or `document`); the task's own instruction in
    `instruction`, which documents do not get; the model's prompt for queries or documents, or none where the task
    does not tell them apart (STS, classification, clustering, …), as sentence-transformers has it.

    Args:
        embed: Texts to vectors.
        name: `<owner>/<name>`, as mteb files its results.
        revision: What tells models of that name apart in mteb's cache of results.
        prompts: Name in mteb's sense -> text put before.
        instruction: For models that read instructions, e.g. "Instruct: {instruction}\\nQuery: ".
        max_length: Tokens kept; None is the encoder's limit.
    """

    def __init__(
        self,
        embed: Embed,
        name: str,
        revision: str,
        prompts: Mapping[str, str] | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
    ):
        known = {"name": name, "revision": revision, "similarity_fn_name": ScoringFunction.COSINE}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=known)
        self.embed, self.prompts, self.max_length = embed, dict(prompts or {}), max_length
        self.instruction_template = instruction

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Vectors (N, D) of the texts of all batches of `inputs`, in their order."""
        texts = [text for batch in inputs for text in batch["text"]]
        role = prompt_type.value if prompt_type else "document"
        return self.embed(texts, role, self.max_length, self.prompt(task_metadata, prompt_type))

    def prompt(self, task: Any, kind: PromptType | None) -> str | None:
        """What is put before a text of that kind; None is the model's prompt for its role."""
        name = get_prompt_name(self.prompts, task, kind)
        if name is not None:
            return self.prompts[name]
        if self.instruction_template is not None:
            return "" if kind == PromptType.document else self.get_task_instruction(task, kind)
        return None if kind else ""
