"""Long texts in windows: the formula written slowly, window by window; nothing of a text is lost; short texts are as
they were."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import composed
from making import batch_of_texts, passes
from unitsphere import artefact, card
from unitsphere.build import build
from unitsphere.embedder import Embedder
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.queue import MemoryQueue
from unitsphere.pooling.mean import MeanPooling
from unitsphere.pooling.windows import LearnedWindows, LengthWindows, PositionWindows, Windows
from unitsphere.training.chunks import embeddings
from unitsphere.training.run import build_embedder
from unitsphere.types import Text

KINDS = {"uniform": Windows, "position": PositionWindows, "length": LengthWindows, "learned": LearnedWindows}
LONG = " ".join(f"word {i} of it" for i in range(40))
TEXTS = ["short", LONG, "", LONG[100:340], "x" * 62, "x" * 63, "the end"]


def made(kind="uniform", size=64, overlap=16, normalize=True, dropout=0.0, seed=0, **options):
    """An embedder with windows; learned weights are not at their start."""
    encoder = tiny(dropout=dropout, seed=seed)
    windows = KINDS[kind](encoder, encoder.dim, size, overlap)
    for parameter in windows.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return Embedder(encoder, MeanPooling(encoder.dim), normalize=normalize, windows=windows, **options).eval()


def slowly(model, kind, text, prompt="", size=64, overlap=16):
    """The vector of a text, one window after the other, by an embedder that has no windows."""
    plain = Embedder(tiny(dropout=0.0), MeanPooling(model.dim), normalize=False, pool_prompt=model.pool_prompt).eval()
    tokenizer = plain.encoder.tokenizer

    def ids(of):
        return tokenizer(of, add_special_tokens=False, verbose=False)["input_ids"] if of else []

    own, before = ids(prompt + text)[len(ids(prompt)) :], ids(prompt)
    room, parts, start = size - 2 - len(before), [], 0
    while True:
        parts.append(own[start : start + room])
        if start + room >= len(own):
            break
        start += room - overlap
    vectors, weights = [], []
    for i, part in enumerate(parts):
        window = [tokenizer.cls_token_id, *before, *part, tokenizer.sep_token_id]
        text_of = Text(np.array(window), 1 + len(before) if before else 0)
        z = plain(plain.encoder.pad([text_of]))[0].detach().numpy()
        vectors.append(z)
        weights.append(
            {
                "uniform": lambda: 1.0,
                "position": lambda i=i: 1 / (1 + i),
                "length": lambda part=part: max(1, len(part)),
                "learned": lambda z=z: float(np.exp(z @ model.windows.query.detach().numpy())),
            }[kind]()
        )
    z = sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    return z / np.linalg.norm(z) if model.normalize else z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"normalize": False}, {"prompts": {"query": "ask: "}}, {"prompts": {"query": "ask: "}, "pool_prompt": False}]
)  # fmt: skip
def test_a_texts_vector_is_that_of_its_windows(kind, options):
    model = made(kind, **options)
    prompt = model.prompts.get("query", "")
    wanted = [slowly(model, kind, text, prompt) for text in TEXTS]
    for budget in (64, 4096):
        np.testing.assert_allclose(model.encode(TEXTS, "query", batch_tokens=budget), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_fits_is_as_it_was_without_windows(kind):
    model, short = made(kind), [text for text in TEXTS if len(text) <= 62]
    with_windows = model.encode(short)
    plain = Embedder(model.encoder, model.pooling).eval()
    np.testing.assert_allclose(with_windows, plain.encode(short), atol=1e-6)


@pytest.mark.parametrize(("size", "overlap"), [(3, 0), (4, 1), (5, 2), (64, 0), (64, 61), (128, 1), (None, 32)])
def test_windows_hold_every_token_and_share_what_was_asked(size, overlap):
    encoder = tiny()
    windows = Windows(encoder, encoder.dim, size, overlap)
    for count in (*range(8), 61, 62, 63, 124, 500):
        own = np.arange(1000, 1000 + count)
        cut = windows.split([Text(np.array([1, *own, 2]))])
        assert cut.position.tolist() == list(range(len(cut.windows))) and not cut.owner.any()
        assert all(w.ids[0] == 1 and w.ids[-1] == 2 and len(w.ids) <= windows.size for w in cut.windows)
        parts = [w.ids[1:-1].tolist() for w in cut.windows]
        assert parts[0] + [token for part in parts[1:] for token in part[overlap:]] == own.tolist()
        assert all(a[len(a) - overlap :] == b[:overlap] for a, b in pairwise(parts))
        assert cut.length.tolist() == [max(1, len(part)) for part in parts]
    assert len(windows.split([]).windows) == 0


@pytest.mark.parametrize("prompt", ["", "ask: "])
def test_ten_thousand_words_keep_their_tail(prompt):
    model = made(prompts={"document": prompt})
    words = ["word"] * 10_000
    one, other = model.encode([" ".join(words), " ".join([*words[:-1], "fish"])], "document")
    assert np.abs(one - other).max() > 1e-6
    at_most = model.encode([" ".join(words), " ".join([*words[:-1], "fish"])], "document", max_length=1000)
    np.testing.assert_array_equal(*at_most)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunks", "cache_tokens"), [(1, None), (3, None), (1, 40)])
def test_training_sees_what_encode_sees_in_any_chunks(kind, chunks, cache_tokens):
    model = made(kind).train()
    texts = {"anchor": TEXTS[:3], "positive": TEXTS[3:6], "negative": TEXTS[5:]}
    tokens = {c: [Text(ids) for ids in model.encoder.tokenize(t)] for c, t in texts.items()}
    batch = batch_of_texts(3, negatives=(0, 2))
    batch = type(batch)(tokens, batch.text_ids, batch.negative_rows, batch.row_ids)
    e = embeddings(model, batch, 1, passes(model, chunks, cache_tokens))
    for column, z in (("anchor", e.anchors[0]), ("positive", e.positives), ("negative", e.negatives)):
        np.testing.assert_allclose(z.detach(), model.encode(texts[column]), atol=1e-5)
    InfoNCE()(e).total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if kind == "learned":
        assert gradients["windows.query"].abs().max() > 1e-6
    if (chunks, cache_tokens) != (1, None):
        again = made(kind).train()
        InfoNCE()(embeddings(again, batch, 1, passes(again))).total.backward()
        for name, parameter in again.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients.get(name), atol=1e-5, rtol=1e-4, msg=name)


def test_no_texts_are_no_vectors():
    assert made().encode([]).shape == made("learned").encode([]).shape == (0, 32)


def test_learned_weights_start_uniform():
    encoder = tiny(dropout=0.0)
    learned = Embedder(encoder, MeanPooling(encoder.dim), windows=LearnedWindows(encoder, encoder.dim, 64, 16)).eval()
    np.testing.assert_allclose(learned.encode(TEXTS), made().encode(TEXTS), atol=1e-6)


def test_a_slow_copy_of_the_embedder_reads_windows_too():
    model, batch = made().train(), batch_of_texts()
    loss = MemoryQueue(InfoNCE(), size=4, momentum=0.9)
    loss.attach(model)
    tokens = dict(batch.tokens) | {"positive": [Text(ids) for ids in model.encoder.tokenize([LONG] * 6)]}
    batch = type(batch)(tokens, batch.text_ids, batch.negative_rows, batch.row_ids)
    assert torch.isfinite(loss(embeddings(model, batch, 1, passes(model))).total)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_saved_with_the_model(tmp_path, kind):
    config = composed("encoder=tiny", f"window={kind}", "window.size=64", "embedder.projection_dim=7")
    model = build_embedder(config).eval()
    for parameter in model.windows.parameters():
        torch.nn.init.normal_(parameter)
    artefact.save(model, tmp_path / "model")
    again = artefact.load(tmp_path / "model")
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert again.protocol() == model.protocol() and again.protocol()["windows"]["size"] == 64
    assert not (tmp_path / "model" / "modules.json").exists()  # that library would cut what this model reads
    other = artefact.load(tmp_path / "model", build_node("position"))
    assert type(other.windows) is PositionWindows and other.protocol() != model.protocol()
    anew = artefact.load(tmp_path / "model", build_node("learned"))
    assert not anew.windows.query.any()


def build_node(kind):
    return composed("encoder=tiny", f"window={kind}").window


@pytest.mark.parametrize("options", [{"size": 64, "overlap": 62}, {"size": 2, "overlap": 0}, {"overlap": -1}])
def test_windows_that_would_not_get_on(options):
    encoder = tiny()
    with pytest.raises(UsageError, match=r"window.size=\d+ window.overlap="):
        build({**build_node("uniform"), **options}, encoder=encoder, dim=encoder.dim)


def test_windows_larger_than_the_encoder_and_prompts_larger_than_a_window():
    encoder = tiny()
    with pytest.raises(UsageError, match=r"window.size=500: the encoder reads 128"):
        Windows(encoder, encoder.dim, 500)
    with pytest.raises(UsageError, match="special tokens and prompt take 32 of"):
        made(size=32, overlap=4, prompts={"query": "p" * 30}).encode([LONG], "query")


def test_a_loss_that_reads_tokens_says_that_it_cannot():
    model = made()
    long = [Text(ids) for ids in model.encoder.tokenize([LONG] * 2)]
    with pytest.raises(UsageError, match="a loss that reads tokens does not go with window"):
        model.encoder.pad(long)


@pytest.mark.parametrize("window", [(), ("window=position", "window.size=64")])
def test_the_card_says_what_is_read(window):
    config = composed("encoder=tiny", *window)
    embedder = build_embedder(config)
    info = {"choices": {"encoder": "tiny", "loss": "simcse"}, "parameters": 1, "embedder": embedder.protocol()}
    text = card.introduction(config, info, {}, cross=False)
    wanted = "texts of any length, read in windows of 64 tokens that share 32 (PositionWindows)"
    assert (wanted if window else "128 tokens at most") in text
    use = card.usage("mine", {}, in_st=not window)
    assert ("sentence_transformers" in use) == (not window)
