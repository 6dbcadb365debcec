"""What an encoder can be besides a checkpoint: a cut, low-rank adapted, bidirectional, from scratch; and prompts."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from making import batch_of_texts, encoded
from unitsphere import artefact
from unitsphere.embedder import Embedder
from unitsphere.encoders.cross_encoder import CrossEncoder
from unitsphere.encoders.language_model import with_head
from unitsphere.encoders.scratch import scratch
from unitsphere.encoders.tiny import tiny
from unitsphere.encoders.transformer import transformer
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.mlm import MaskedLM
from unitsphere.pooling.last_token import LastTokenPooling
from unitsphere.pooling.mean import MeanPooling

TEXTS = ["sort a list", "find a tree in a graph", "b"]


@pytest.fixture
def bert(tmp_path):
    """A folder with a tiny BERT of 4 layers."""
    encoder = tiny(depth=4)
    encoder.model.save_pretrained(tmp_path / "bert")
    encoder.tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def llama(tmp_path):
    """A folder with a tiny Llama of random weights, characters as tokens."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "_", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(
        models.WordPiece(
            {p: i for i, p in enumerate(pieces)} | {f"##{c}": 41 + i for i, c in enumerate(pieces[5:])},
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )
    config = LlamaConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    fast.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def saved(encoder, pooling, folder):
    node = {"_target_": f"{pooling.__module__}.{pooling.__name__}"}
    embedder = artefact.assemble(encoder, node, {"_target_": "unitsphere.embedder.Embedder"}).eval()
    artefact.save(embedder, folder)
    return embedder


def test_a_cut_is_the_chosen_layers_in_order(bert, tmp_path):
    whole, cut = transformer(str(bert)), transformer(str(bert), layers=[0, 3])
    assert cut.model.config.num_hidden_layers == 2
    for mine, theirs in zip(cut.model.encoder.layer, (0, 3), strict=True):
        for a, b in zip(mine.parameters(), whole.model.encoder.layer[theirs].parameters(), strict=True):
            assert torch.equal(a, b)
    before = saved(cut, MeanPooling, tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS), before, atol=1e-6)
    with pytest.raises(UsageError, match="layers 0 to 3"):
        transformer(str(bert), layers=[4])


def test_a_cut_of_another_architecture(tmp_path):
    DistilBertModel(DistilBertConfig(vocab_size=200, dim=32, n_layers=3, n_heads=4, hidden_dim=64)).save_pretrained(
        tmp_path
    )
    tiny().tokenizer.save_pretrained(tmp_path)
    assert len(transformer(str(tmp_path), layers=[2]).model.transformer.layer) == 1


def test_a_cut_decoder_has_its_layers_renumbered(llama, tmp_path):
    cut = transformer(str(llama), layers=[1])
    before = saved(cut, MeanPooling, tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS), before, atol=1e-6)
    assert not cut.model.config.use_cache


def test_dropout_is_that_of_every_layer_whatever_an_architecture_calls_it(tmp_path):
    kinds: list[Any] = [
        (GPT2Model, GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2, n_positions=64), 3),
        (DistilBertModel, DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=4, hidden_dim=64), 3),
    ]
    for kind, config, least in kinds:
        folder = tmp_path / config.model_type
        kind(config).save_pretrained(folder)
        tiny().tokenizer.save_pretrained(folder)
        found = [m.p for m in transformer(str(folder), dropout=0.3).model.modules() if isinstance(m, nn.Dropout)]
        assert len(found) >= least and {*found} == {0.3}


def test_a_model_without_dropout_says_so(llama, monkeypatch):
    monkeypatch.setattr("unitsphere.encoders.transformer.DROPOUTS", ("nothing",))
    with pytest.raises(UsageError, match=r"encoder\.dropout=0\.1: a llama model has no dropout"):
        transformer(str(llama), dropout=0.1)
    transformer(str(llama), dropout=0)


def test_wrong_encoder_settings_are_refused(bert):
    with pytest.raises(UsageError, match="no setting 'rank'"):
        transformer(str(bert), lora={"rank": 8})
    with pytest.raises(UsageError, match=r"encoder\.lora"):
        transformer(str(bert), lora={"modules": ["nope"]})
    with pytest.raises(UsageError, match="end-of-text"):
        transformer(str(bert), append_eos=True)


def test_lora_starts_as_the_model_trains_little_and_is_merged_when_saved(bert, tmp_path):
    plain = Embedder(transformer(str(bert)), MeanPooling(32)).eval()
    torch.manual_seed(0)
    encoder = transformer(str(bert), lora={"r": 2, "alpha": 8})
    embedder = Embedder(encoder, MeanPooling(32)).eval()
    np.testing.assert_allclose(embedder.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trainable and all("lora" in name for name in trainable)
    embedder.train()
    loss = InfoNCE()
    optimizer = torch.optim.AdamW([p for p in embedder.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss(encoded(embedder, batch_of_texts(), loss)).total.backward()
        optimizer.step()
    after = embedder.eval().encode(TEXTS)
    assert np.abs(after - plain.encode(TEXTS)).max() > 1e-3
    saved(encoder, MeanPooling, tmp_path / "saved")
    np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS), after, atol=1e-5)
    names = AutoModel.from_pretrained(tmp_path / "saved").state_dict()
    assert not any("lora" in name for name in names) and encoder.model.state_dict().keys() != names.keys()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_decoder_sees_what_follows_only_if_told(llama, tmp_path, bidirectional):
    st = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    encoder = transformer(str(llama), bidirectional=bidirectional)
    one, other = (encoder.tokenize([text])[0] for text in ("abcd", "abce"))
    states = [
        encoder(encoder.pad([batch_of_texts().tokens["anchor"][0].__class__(ids)])).hidden[0, 0] for ids in (one, other)
    ]
    assert torch.allclose(*states, atol=1e-6) != bidirectional
    embedder = saved(encoder, MeanPooling, tmp_path / "saved")
    theirs = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    # of equal length: no padding; then of several lengths
    for texts in (["abcd", "abce"], ["abcd", "ab cd efg", "z"]):
        np.testing.assert_allclose(theirs.encode(texts), embedder.encode(texts), atol=1e-5)
    np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS), embedder.encode(TEXTS), atol=1e-6)


def test_texts_end_with_the_end_of_text_token_here_and_in_the_saved_tokenizer(llama, tmp_path):
    encoder = transformer(str(llama), append_eos=True, max_length=8)
    ids = encoder.tokenize(["abc", "abcdefghijklmnop"])
    assert [i[-1] for i in ids] == [2, 2] and len(ids[1]) == 8
    saved(encoder, LastTokenPooling, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("abc")["input_ids"][-1] == 2
    again = transformer(str(tmp_path / "saved"), append_eos=True)
    assert again.tokenize(["abc"])[0].tolist() == ids[0].tolist()


def test_masked_next_token_prediction_trains_a_bidirectional_decoder_through_lora(llama, tmp_path):
    torch.manual_seed(0)
    encoder = transformer(str(llama), bidirectional=True, lora={"r": 4})
    embedder = Embedder(encoder, MeanPooling(32)).train()
    loss = MaskedLM(lambda e: with_head(e, causal=True), mask_ratio=0.3, next_token=True, mask_token="_")
    loss.attach(embedder)
    batch = batch_of_texts()
    batch = type(batch)(**{**vars(batch), "tokens": {
        c: [type(batch.tokens["anchor"][0])(ids) for ids in encoder.tokenize(texts)] for c, texts in batch.texts.items()
    }})  # fmt: skip
    trained = [p for p in {*embedder.parameters(), *loss.parameters()} if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    history = []
    for _ in range(30):
        total = loss(encoded(embedder, batch, loss)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert np.mean(history[-5:]) < np.mean(history[:5])
    before = saved(encoder, MeanPooling, tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS), before, atol=1e-5)


def test_from_scratch_is_a_function_of_its_arguments():
    one, same, other = (scratch(dim=32, depth=1, heads=2, seed=s) for s in (1, 1, 2))
    words = [e.model.embeddings.word_embeddings.weight for e in (one, same, other)]
    assert torch.equal(words[0], words[1]) and not torch.equal(words[0], words[2])
    assert one.dim == 32 and one.tokenize(["sorted"])[0][0] == one.tokenizer.cls_token_id


@pytest.mark.parametrize("pooling", ["mean.MeanPooling", "mean.WeightedMeanPooling", "max.MaxPooling"])
@pytest.mark.parametrize("pool_prompt", [True, False])
def test_a_prompt_is_read_and_pooled_as_in_sentence_transformers(bert, tmp_path, pool_prompt, pooling):
    st = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    node = {
        "_target_": "unitsphere.embedder.Embedder", "pool_prompt": pool_prompt,
        "prompts": {"query": "query: ", "clustering": "name the topic: "},
    }  # fmt: skip
    embedder = artefact.assemble(transformer(str(bert)), {"_target_": f"unitsphere.pooling.{pooling}"}, node)
    artefact.save(embedder.eval(), tmp_path / "saved")
    theirs = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for name in ("query", "clustering"):
        ours = embedder.encode(TEXTS, role=name)
        np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name=name), ours, atol=1e-5)
        np.testing.assert_allclose(artefact.load(tmp_path / "saved").encode(TEXTS, role=name), ours, atol=1e-6)
    assert np.abs(embedder.encode(TEXTS, role="query") - embedder.encode(TEXTS, role="clustering")).max() > 1e-3
    np.testing.assert_allclose(
        embedder.encode(TEXTS, prompt="query: "), embedder.encode(TEXTS, role="query"), atol=1e-6
    )


def test_a_cross_encoder_scores_pairs(tmp_path):
    encoder = tiny()
    config = BertConfig(**{**encoder.model.config.to_dict(), "num_labels": 1})
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    scorer = CrossEncoder(str(tmp_path), batch_tokens=12)
    pairs = [("a", "b"), ("a b c", "d"), ("x", "y z")]
    alone = np.concatenate([scorer([pair]) for pair in pairs])
    np.testing.assert_allclose(scorer(pairs), alone, atol=1e-5)
    assert scorer(pairs).shape == (3, 1)
    assert scorer.max_length == config.max_position_embeddings < 256  # the tokenizer's own limit may be none
    assert np.isfinite(scorer([("a " * 300, "b " * 300)])).all()
    with pytest.raises(UsageError, match="no cross-encoder"):
        CrossEncoder(str(tmp_path / "nothing"))


def test_attention_that_has_no_float32_is_refused(bert):
    with pytest.raises(UsageError, match="it has no float32, in which models are scored; sdpa and eager would fit"):
        transformer(str(bert), attention="flash_attention_2")
