"""A trimmed tokenizer reads texts of kept tokens as the whole one does, and the model embeds them the same."""

import argparse
import json
import textwrap

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from conftest import composed
from unitsphere import artefact
from unitsphere.build import build
from unitsphere.compression.step import Context
from unitsphere.compression.tokens import trimmed
from unitsphere.compression.vocabulary import TrimVocabulary
from unitsphere.encoders.transformer import TransformerEncoder
from unitsphere.errors import UsageError

CHINESE = ["今天天气很好，我们去公园散步。", "一个女孩正在给自己的头发做造型。", "排序列表", "在图中查找一棵树"]
LINES = [
    line.strip()
    for source in (argparse.__doc__, textwrap.__doc__, argparse.ArgumentParser.__doc__, textwrap.TextWrapper.__doc__)
    for line in source.splitlines()
    if line.strip()
]
MINE, OTHERS = LINES[::3] + CHINESE[:3], [*LINES, *CHINESE, "Здравствуй, naïve 🙂", "", "a", "zzz qqq"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
FRAME = [("<s>", 0), ("</s>", 2)]


def framed(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=FRAME
    )
    return tokenizer


def trained(model, trainer, pre_tokenizer, normalizer=None, **options):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(LINES + CHINESE, trainer(special_tokens=SPECIAL, show_progress=False, **options))
    return framed(tokenizer)


def unigram():
    pieces = pre_tokenizers.Metaspace()
    return trained(
        models.Unigram(), trainers.UnigramTrainer, pieces, normalizers.NFKC(), vocab_size=500, unk_token="<unk>"
    )


def wordpiece():
    model = models.WordPiece(unk_token="<unk>")
    return trained(
        model,
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        vocab_size=600,
    )


def byte_bpe(merges=500):
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer = trained(
        models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size=261 + merges,
        **alphabet,
    )  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def character_bpe():
    """As Llama 2 has it: unknown characters are read as bytes."""
    state = json.loads(
        trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer, pre_tokenizers.Metaspace(), vocab_size=700).to_str()
    )
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    return Tokenizer.from_str(json.dumps(state))


ALGORITHMS = {"unigram": unigram, "wordpiece": wordpiece, "byte_bpe": byte_bpe, "character_bpe": character_bpe}


def fast(make):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=ALGORITHMS[make](), model_max_length=100, **NAMES)
    tokenizer.add_tokens(["brandnewword"])
    return tokenizer


def embedder_of(tokenizer, kind="bert", prompts=None):
    config, rows = {"bert": BertConfig, "roberta": RobertaConfig}[kind], len(tokenizer) + 7  # as XLM-R has spare ones
    torch.manual_seed(0)
    model = AutoModel.from_config(
        config(
            vocab_size=rows, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=128,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    node = {"_target_": "unitsphere.embedder.Embedder", "prompts": prompts or {}}
    mean = {"_target_": "unitsphere.pooling.mean.MeanPooling"}
    return artefact.assemble(TransformerEncoder(model, tokenizer, 100), mean, node).eval()


def pieces(tokenizer, texts):
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("make", ALGORITHMS)
def test_texts_of_kept_tokens_are_read_and_embedded_as_before(make, kind, tmp_path):
    tokenizer = fast(make)
    model = embedder_of(tokenizer, kind, {"query": "ask: ", "clustering": "group "})
    mine, cases = pieces(tokenizer, MINE), [(MINE, ""), (MINE, "query"), (MINE, "clustering")]
    before = [model.encode(texts, role) for texts, role in cases]
    step = TrimVocabulary()
    pairs = list(zip(MINE, MINE[1:] + MINE[:1], strict=True))
    trim = step.apply(model, Context(pairs, None, tmp_path / "step"))
    new = trim.encoder.tokenizer
    assert len(new) < 0.9 * len(fast(make)) and pieces(new, MINE) == mine
    for (texts, role), vectors in zip(cases, before, strict=True):
        np.testing.assert_allclose(trim.encode(texts, role), vectors, atol=1e-6)
    config = trim.encoder.model.config
    assert config.vocab_size == len(new) == trim.encoder.model.get_input_embeddings().num_embeddings
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 2)
    assert new.all_special_tokens == fast(make).all_special_tokens and "brandnewword" in new.get_vocab()
    assert pieces(new, ["a brandnewword."])[0].count("brandnewword") == 1

    artefact.save(trim, tmp_path / "model")
    again = artefact.load(tmp_path / "model")
    np.testing.assert_allclose(again.encode(MINE + OTHERS), trim.encode(MINE + OTHERS), atol=1e-6)


@pytest.mark.parametrize("make", ALGORITHMS)
def test_other_texts_are_read_in_kept_pieces(make, tmp_path):
    whole = fast(make)
    used = {index for ids in whole(MINE)["input_ids"] for index in ids}
    new, old = trimmed(whole, used, tmp_path)
    assert [whole.convert_ids_to_tokens(index) for index in old] == new.convert_ids_to_tokens(list(range(len(new))))
    read = pieces(new, OTHERS)
    for text, tokens in zip(OTHERS, read, strict=True):
        if "bpe" in make:  # bytes are always there
            assert "<unk>" not in tokens
            if make == "byte_bpe":
                assert new.decode(new(text)["input_ids"], skip_special_tokens=True) == text
    known = {character for text in MINE for character in text}
    spelt = [tokens for text, tokens in zip(OTHERS, read, strict=True) if set(text) <= known]
    assert len(spelt) > 10 and all("<unk>" not in tokens for tokens in spelt if make != "wordpiece")
    again, _ = trimmed(new, range(len(new)), tmp_path / "again")
    assert again.get_vocab() == new.get_vocab() and pieces(again, OTHERS) == read


@pytest.mark.parametrize("kind", [BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer])
def test_transformers_own_classes(kind, tmp_path):
    """They make a tokenizer of their own out of the vocabulary that they are given."""
    make = {BertTokenizer: "wordpiece", RobertaTokenizer: "byte_bpe", XLMRobertaTokenizer: "unigram"}[kind]
    state = json.loads(ALGORITHMS[make]().to_str())["model"]
    vocabulary = [tuple(pair) for pair in state["vocab"]] if make == "unigram" else state["vocab"]
    given = {"merges": [tuple(merge) for merge in state["merges"]]} if make == "byte_bpe" else {}
    named = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    kind(vocab=vocabulary, **given, **named).save_pretrained(tmp_path / "whole")
    whole = AutoTokenizer.from_pretrained(str(tmp_path / "whole"))
    assert type(whole) is kind
    mine = pieces(whole, MINE)
    assert mine[0][0] == "<s>" and mine[0][-1] == "</s>"
    new, _ = trimmed(whole, {i for ids in whole(MINE)["input_ids"] for i in ids}, tmp_path / "new")
    assert type(new) is kind and len(new) < 0.9 * len(whole) and pieces(new, MINE) == mine
    new.save_pretrained(tmp_path / "again")
    assert pieces(AutoTokenizer.from_pretrained(str(tmp_path / "again")), OTHERS) == pieces(new, OTHERS)


def test_texts_come_from_files_and_rare_tokens_go(tmp_path):
    (tmp_path / "a.txt").write_text("sort sort\nlist\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"x": "sort", "y": "graph", "n": 3}) + "\n", encoding="utf-8")
    words = ["sort", "list", "graph", "tree", "other"]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *words, *"abc"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    framed(tokenizer)

    def kept(rows, **options):
        fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **NAMES)
        context = Context(rows, None, tmp_path / "step")
        return set(TrimVocabulary(**options).apply(embedder_of(fast), context).encoder.tokenizer.get_vocab()) & {*words}

    files, pairs = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")], [("tree", "other")]
    assert kept(pairs) == {"tree", "other"}
    assert kept(pairs, path=files) == {"sort", "list", "graph", "tree", "other"}
    assert kept(pairs, path=files[0], pairs=False) == {"sort", "list"}
    assert kept(pairs, path=files, least=3) == {"sort"}
    for wrong, message in (({"pairs": False}, "no texts"), ({"path": str(tmp_path / "c.txt")}, "no such file")):
        with pytest.raises(UsageError, match=message):
            kept(pairs, **wrong)
    (tmp_path / "b.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="row 1: not valid JSON"):
        kept(pairs, path=files)


def test_other_algorithms_are_named(tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(UsageError, match=r"WordLevel; Unigram, WordPiece, BPE would fit"):
        trimmed(PreTrainedTokenizerFast(tokenizer_object=words), [0], tmp_path)
    with pytest.raises(UsageError, match=r"in Python"):
        trimmed(object(), [0], tmp_path)


def test_the_option_builds():
    step = build(composed("compression=vocabulary", "compression.vocabulary.path=[a.txt,b.txt]").compression.vocabulary)
    assert step.files == ["a.txt", "b.txt"]
