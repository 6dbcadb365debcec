"""What requests may hold; a field that is not named here is refused, not ignored.

The fields of /embed and /rerank have a second name, that of Text Embeddings Inference, so that its clients fit.

Code: https://huggingface.github.io/text-embeddings-inference, https://platform.openai.com/docs/api-reference/embeddings
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _listed(value: Any) -> Any:
    """One text as a list of one. Token ids get a message of their own, for OpenAI's endpoint would take them."""
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise PydanticCustomError(
            "token_ids",
            "these are token ids, and this model reads others than OpenAI's: send texts "
            "(LangChain: check_embedding_ctx_length=False)",
        )
    return [value] if isinstance(value, str) else value


def _unicode(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
            raise PydanticCustomError("no_unicode", "half a surrogate pair, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Texts = Annotated[list[Text], BeforeValidator(_listed)]
Dimensions = Annotated[int | None, Field(ge=1, description="Keep the first numbers of each vector.")]
Role = Annotated[
    str | None,
    Field(
        validation_alias=AliasChoices("role", "prompt_name"),
        description="query, document or another name of the model's prompts.",
    ),
]
Prompt = Annotated[Text | None, Field(description="Put before every text, instead of the role's prompt.")]
Direction = Annotated[
    Literal["Right", "right"],
    Field(description="Where a too long text is cut: at its end, as in training."),
]
Truncate = Annotated[bool | None, Field(description="Whether too long texts are cut; null is as the server is set.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EmbedRequest(_Request):
    """Texts to vectors."""

    texts: Annotated[Texts, Field(validation_alias=AliasChoices("texts", "inputs"))]
    role: Role = None
    prompt: Prompt = None
    dimensions: Dimensions = None
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    normalize: Annotated[bool | None, Field(description="Length one; null is as the model gives them.")] = None


class OpenAIRequest(_Request):
    """As OpenAI's, with the two ways to a prompt besides (`extra_body` of its client)."""

    input: Texts
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    user: str | None = None
    role: Role = None
    prompt: Prompt = None


class RerankRequest(_Request):
    """Texts in the order in which they answer a query."""

    query: Text
    texts: Texts
    top_n: Annotated[int | None, Field(ge=1)] = None
    return_texts: Annotated[bool, Field(validation_alias=AliasChoices("return_texts", "return_text"))] = False
    raw_scores: Annotated[bool, Field(description="A cross-encoder's logits, not their sigmoid.")] = False
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
