"""A tokenizer with fewer tokens that reads the same texts in the same way.

It edits what the `tokenizers` library saves: Unigram (XLM-R, multilingual E5), WordPiece (BERT) and BPE, on bytes
(GPT-2, RoBERTa, Llama 3, Qwen) or on characters (Llama 2).

Code: https://github.com/huggingface/tokenizers (the format of tokenizer.json and the three algorithms).
"""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from unitsphere.errors import UsageError


def unigram(model: dict[str, Any], kept: set[str]) -> set[str]:
    """The most probable segmentation stays that as long as its pieces are there and those of unknown characters cost as
    before, which is ten below the least probable piece: that one stays too."""
    pieces = {piece for piece, _ in model["vocab"]}
    least, _ = min(model["vocab"], key=lambda piece: piece[1])
    return (kept & pieces) | {least} | (_characters(kept) & pieces)


def wordpiece(model: dict[str, Any], kept: set[str]) -> set[str]:
    """The longest match from the left stays that as long as it is there."""
    prefix = model["continuing_subword_prefix"]
    characters = _characters(piece.removeprefix(prefix) for piece in kept)
    return (kept | characters | {prefix + character for character in characters}) & model["vocab"].keys()


def bpe(model: dict[str, Any], kept: set[str]) -> set[str]:
    """A token is merged again as long as all that it can be merged of is there; the merges keep their order."""
    prefix = model.get("continuing_subword_prefix") or ""
    parts: dict[str, list[str]] = {}
    merges = [(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    for left, right in merges:
        parts.setdefault(left + right.removeprefix(prefix), []).extend([left, right])
    kept = (kept | _characters(kept) | set(ByteLevel.alphabet())) & model["vocab"].keys()
    new = list(kept)
    while new:
        new = [part for piece in new for part in parts.get(piece, ()) if part not in kept]
        kept |= set(new)
    model["merges"] = [[a, b] for a, b in merges if {a, b, a + b.removeprefix(prefix)} <= kept]
    return kept


# Algorithm -> what it needs to tokenise in the same way those texts whose pieces are kept, and to spell others of the
# same characters; it adapts the model but for its vocabulary.
COVER: dict[str, Callable[[dict[str, Any], set[str]], set[str]]] = {
    "Unigram": unigram,
    "WordPiece": wordpiece,
    "BPE": bpe,
}


def trimmed(tokenizer: Any, used: Collection[int], folder: Path) -> tuple[Any, list[int]]:
    """The tokenizer with few tokens.

    Args:
        tokenizer: A fast tokenizer of transformers.
        used: Ids of the tokens that must stay; special and added tokens stay in any case.
        folder: Where it is written, in transformers' layout.

    Returns:
        The new tokenizer, and for each of its ids the old one. Texts whose tokens are all among `used` have the same
        tokens as before.

    Raises:
        UsageError: Of a tokenizer written in Python, or one of another algorithm.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "in Python"}}
    model: dict[str, Any] = state["model"]
    if model["type"] not in COVER:
        raise UsageError(f"{type(tokenizer).__name__}: its algorithm is {model['type']}; {', '.join(COVER)} would fit.")
    old: dict[str, int] = tokenizer.get_vocab()
    names = {index: piece for piece, index in old.items()}
    added: list[str] = [token["content"] for token in state["added_tokens"]]
    unknown = names[model["unk_id"]] if model.get("unk_id") is not None else model.get("unk_token")
    kept = {names[index] for index in used if index in names} | {*added, *_fallback(old)}
    if unknown is not None:
        kept.add(unknown)
    inside = sorted(COVER[model["type"]](model, kept), key=old.__getitem__)
    order = inside + [piece for piece in added if piece not in set(inside)]
    new = {piece: index for index, piece in enumerate(order)}

    if model["type"] == "Unigram":
        model["vocab"] = [pair for pair in model["vocab"] if pair[0] in new]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        model["vocab"] = {piece: new[piece] for piece in inside}
    for token in state["added_tokens"]:
        token["id"] = new[token["content"]]
    _renumber(state["post_processor"], new)
    state["padding"] = state["truncation"] = None
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    made = AutoTokenizer.from_pretrained(str(folder))
    if made.get_vocab() != new:
        raise UsageError(f"{type(tokenizer).__name__}: transformers numbers its tokens in a way of its own.")
    return made, [old[piece] for piece in order]


def _characters(pieces: Iterable[str]) -> set[str]:
    return {character for piece in pieces for character in piece}


def _fallback(vocabulary: Collection[str]) -> set[str]:
    """The tokens of single bytes, as which some models read unknown characters."""
    return {piece for byte in range(256) if (piece := f"<0x{byte:02X}>") in vocabulary}


def _renumber(node: Any, new: dict[str, int]) -> None:
    """Give the special tokens of a post-processor, at any depth, their new ids."""
    if isinstance(node, dict):
        if "tokens" in node and "ids" in node:
            node["ids"] = [new[token] for token in node["tokens"]]
        for key, value in node.items():
            if key in ("cls", "sep"):
                node[key] = [value[0], new[value[0]]]
            _renumber(value, new)
    for child in node if isinstance(node, list) else ():
        _renumber(child, new)
