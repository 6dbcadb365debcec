"""Cross-encoders: pairs joined as the tokenizer does, losses against loops over transformers' own classifier, and a run
whose model three libraries load with equal scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from conftest import composed
from making import batch_of_texts, encoded, model
from unitsphere import artefact
from unitsphere.build import build_evaluators
from unitsphere.cli.train import main as train
from unitsphere.encoders.cross_encoder import CrossEncoder
from unitsphere.encoders.pair_scorer import PairScorer
from unitsphere.encoders.tiny import tiny
from unitsphere.encoders.transformer import transformer
from unitsphere.errors import UsageError
from unitsphere.evaluation.score import score
from unitsphere.losses.cross_encoder import RankedPairs, ScoredPairs
from unitsphere.runs import Run
from unitsphere.types import RetrievalSet, Text

QUERIES, DOCUMENTS = ["sort a tree", "", "find", "graph " * 30], ["how to sort", "array", "tree " * 40, "a graph " * 9]


def scorer(types=True, **options):
    """A tiny cross-encoder, whose tokenizer tells the two texts apart or does not."""
    encoder = tiny(dropout=0.0, **options)
    if types:
        encoder.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    torch.manual_seed(2)
    return encoder, PairScorer(encoder).eval()


@pytest.mark.parametrize("limit", [128, 31, 30])
@pytest.mark.parametrize("types", [True, False])
def test_pairs_are_joined_and_cut_as_the_tokenizer_does(types, limit):
    encoder, made = scorer(types)
    made.room += limit - encoder.max_length
    single = [[Text(ids) for ids in encoder.tokenize(texts)] for texts in (QUERIES, DOCUMENTS)]
    pairs, begins = made.join(*single)
    theirs = encoder.tokenizer(
        QUERIES, DOCUMENTS, truncation="longest_first", max_length=limit, return_token_type_ids=True
    )
    assert [pair.ids.tolist() for pair in pairs] == theirs["input_ids"]
    assert begins.tolist() == [types.index(1) for types in theirs["token_type_ids"]]


def test_a_pair_has_no_prompts():
    encoder, made = scorer()
    plain = [Text(ids) for ids in encoder.tokenize(QUERIES)]
    length = encoder.prompt_length("ask ")
    prompted = [Text(ids, length) for ids in encoder.tokenize(["ask " + text for text in QUERIES])]
    for a, b in zip(made.join(plain, plain)[0], made.join(prompted, plain)[0], strict=True):
        assert len(a.ids) == encoder.max_length or a.ids.tolist() == b.ids.tolist()


@pytest.mark.parametrize("types", [True, False])
def test_the_texts_are_told_apart_where_the_tokenizer_does(types):
    encoder, made = scorer(types)
    theirs = encoder.tokenizer(QUERIES, DOCUMENTS, truncation="longest_first", max_length=128, padding=True,
                               return_tensors="pt")  # fmt: skip
    pairs, begins = made.join(*([Text(ids) for ids in encoder.tokenize(t)] for t in (QUERIES, DOCUMENTS)))
    with torch.no_grad():
        torch.testing.assert_close(made(encoder.pad(pairs), begins), made.model(**theirs).logits[:, 0])


def test_the_base_is_the_encoder_under_training_and_the_rest_the_checkpoints(tmp_path):
    encoder, made = scorer()
    assert made.model.base_model is encoder.model and encoder.exported() is made.model
    encoder.exported().save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    again = PairScorer(transformer(str(tmp_path), layers=[1]))
    assert again.model.base_model.encoder.layer[0] is not made.model.base_model.encoder.layer[1]
    for part in ("classifier.weight", "bert.pooler.dense.weight"):
        torch.testing.assert_close(again.model.state_dict()[part], made.model.state_dict()[part])


def test_a_tokenizer_in_python_is_refused(monkeypatch):
    encoder = tiny()
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", False)
    with pytest.raises(UsageError, match=r"is a tokenizer in Python; .* takes one with tokenizer\.json"):
        PairScorer(encoder)


def attached(loss, **options):
    embedder = model(dropout=0.0, **options)
    embedder.encoder.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    torch.manual_seed(2)
    loss.attach(embedder)
    return embedder, loss


def logit(embedder, loss, a, b):
    """One pair, through the tokenizer and transformers' model."""
    return loss.scorer.model(**embedder.encoder.tokenizer(a, b, return_tensors="pt")).logits[0, 0]


@pytest.mark.parametrize("in_batch", [0, 9])
@pytest.mark.parametrize(("chunks", "cache_tokens"), [(1, None), (4, None), (1, 90)])
def test_ranked_pairs_equal_the_formula(in_batch, chunks, cache_tokens):
    embedder, loss = attached(RankedPairs(PairScorer, in_batch))
    batch, total = batch_of_texts(), 0.0
    texts = batch.texts
    for i in range(6):
        candidates = [texts["positive"][i]] + [texts["negative"][m] for m, of in enumerate((0, 0, 4)) if of == i]
        candidates += [texts["positive"][j] for j in range(6) if j != i and in_batch]
        logits = torch.stack([logit(embedder, loss, texts["anchor"][i], text) for text in candidates])
        total += -logits.log_softmax(dim=0)[0] / 6
    out = loss(encoded(embedder, batch, loss, chunks, cache_tokens))
    torch.testing.assert_close(out.total, total, atol=1e-5, rtol=1e-5)
    assert float(out.parts["negatives"]) == pytest.approx(0.5 + (5 if in_batch else 0))


def test_equal_texts_are_no_negatives_and_a_draw_is_a_function_of_the_seed():
    loss = RankedPairs(PairScorer, in_batch=3)
    batch = replace(
        batch_of_texts(negatives=(0, 1, 1)),
        text_ids={
            "anchor": torch.tensor([1, 2, 1, 4, 5, 6]),
            "positive": torch.tensor([11, 11, 13, 14, 4, 16]),
            "negative": torch.tensor([1, 11, 23]),
        },
    )
    draws = []
    for seed in range(40):
        torch.manual_seed(seed)
        draws.append(loss.candidates(encoded(model(), batch, loss)))
    ever = torch.stack(draws).any(dim=0)
    never = [(0, 1), (1, 0), (0, 2), (2, 0), (3, 4), (0, 6), (1, 7), (2, 8), (0, 8)]
    assert not any(ever[i, j] for i, j in never)
    assert ever[1, 8] and all(ever[i, i] for i in range(6)) and ever[1, 2] and ever[4, 3]
    counts = torch.stack(draws)[:, :, :6].sum(dim=2)
    assert (counts[:, [1, 2, 3, 4, 5]] == 4).all() and (counts[:, 0] == 4).all()
    torch.manual_seed(7)
    assert torch.equal(loss.candidates(encoded(model(), batch, loss)), draws[7])
    assert len({tuple(d.flatten().tolist()) for d in draws}) > 30


def test_scored_pairs_equal_the_formula():
    embedder, loss = attached(ScoredPairs(PairScorer))
    batch = batch_of_texts(negatives=())
    total = 0.0
    for a, b, y in zip(batch.texts["anchor"], batch.texts["positive"], batch.scores, strict=True):
        p = torch.sigmoid(logit(embedder, loss, a, b))
        total -= (y * p.log() + (1 - y) * (1 - p).log()) / 6
    out = loss(encoded(embedder, batch, loss, chunks=2))
    torch.testing.assert_close(out.total, total, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match=r"score of 5 .*max_score"):
        loss(encoded(embedder, replace(batch, scores=torch.tensor([0.0, 1, 0.5, 5, 1, 1])), loss))


def test_nothing_to_rank_against_is_refused():
    embedder, loss = attached(RankedPairs(PairScorer, in_batch=0))
    batch = batch_of_texts(negatives=())
    batch = replace(batch, tokens={c: t for c, t in batch.tokens.items() if c != "negative"})
    with pytest.raises(UsageError, match=r"in_batch=4"):
        loss(encoded(embedder, batch, loss))
    with pytest.raises(UsageError, match="0 or more"):
        RankedPairs(PairScorer, in_batch=-1)


@pytest.mark.parametrize("make", [lambda: RankedPairs(PairScorer), lambda: ScoredPairs(PairScorer)])
def test_it_learns(make):
    embedder, loss = attached(make())
    optimizer = torch.optim.AdamW({*embedder.parameters(), *loss.parameters()}, lr=1e-3)
    history = []
    for _ in range(50):
        total = loss(encoded(embedder, batch_of_texts(), loss)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross")
    words = [f"{a}{b}" for a in "abcdefgh" for b in "klmnopqr"]
    rows = [{"anchor": f"{w} is", "positive": f"all of {w}", "negative": ["none", f"{w[::-1]}"]} for w in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNITSPHERE_CACHE", str(folder / "cache"))
        train([
            "encoder=tiny", "loss=cross_encoder", "eval=none", "select=last", "data=triplets", "data.batch_size=16",
            f"data.path={folder / 'rows.jsonl'}", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
            "~callbacks.progress", "optim.lr=1e-2", "trainer.cache_tokens=200", f"outputs={folder / 'out'}",
        ])  # fmt: skip
    (run,) = (folder / "out" / "cross_encoder-mean").iterdir()
    return Run(run)


PAIRS = [("ab is", "all of ab"), ("c", "none"), ("dd is", ""), ("xy " * 50, "all of " * 60), ("日本", "e")]


def test_three_libraries_read_the_saved_model_with_equal_scores(trained):
    st = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    folder = trained.folder / "model"
    ours = CrossEncoder(str(trained.folder))(PAIRS)[:, 0]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(
        *map(list, zip(*PAIRS, strict=True)), padding=True, truncation="longest_first", return_tensors="pt"
    )
    with torch.no_grad():
        np.testing.assert_allclose(loaded(**tokens).logits[:, 0].numpy(), ours, atol=1e-5)
    np.testing.assert_allclose(st.CrossEncoder(str(folder), device="cpu").predict(PAIRS), ours, atol=1e-5)
    assert np.ptp(ours) > 1e-3


def test_the_run_says_that_it_is_a_cross_encoder(trained):
    folder = trained.folder / "model"
    assert not (folder / "modules.json").exists() and not (folder / "unitsphere.yaml").exists()
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-ranking" and "cross-encoder" in card.data.tags and "embeds none" in text
    names = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert len(names["scores"]) == 1
    with pytest.raises(UsageError, match="embeds none"):
        artefact.load(trained.folder)
    assert transformer(str(trained.folder)).dim == 32  # its encoder is a start
    curves = (trained.folder / "metrics.csv").read_text()
    assert "train/accuracy" in curves and "train/negatives" in curves


def test_pairs_are_scored_in_order_whatever_the_batches(trained):
    rng = np.random.default_rng(0)
    pairs = [("a " * int(rng.integers(1, 60)), "b " * int(rng.integers(1, 90))) for _ in range(50)]
    alone = np.concatenate([CrossEncoder(str(trained.folder))([pair]) for pair in pairs[:5]])
    for batch_tokens in (1, 300, 100000):
        np.testing.assert_allclose(
            CrossEncoder(str(trained.folder), batch_tokens=batch_tokens)(pairs)[:5], alone, atol=1e-5
        )
    assert CrossEncoder(str(trained.folder))([]).shape == (0, 1)


def test_it_reranks_in_an_evaluation(trained):
    config = composed("eval=[retrieval,hybrid]", f"eval.hybrid.reranker={trained.folder}", "eval.hybrid.depth=3", "model=x",
                      root="eval")  # fmt: skip
    corpus = {f"d{i}": f"all of {c}{c}" for i, c in enumerate("klmn")}
    own = RetrievalSet("letters", corpus, {"q": "all of kk is"}, {"q": {"d0": 1}})
    evaluators = build_evaluators(config.eval, "test", own)
    result = score(evaluators, model().eval().embed)
    pairs = [("all of kk is", text) for text in corpus.values()]
    scores = dict(zip(corpus, CrossEncoder(str(trained.folder))(pairs)[:, 0], strict=True))
    order = evaluators[1]._rankings(model().eval().embed)
    first = [f"d{row}" for row in order["rrf"][1][0][:3]]
    best = max(first, key=lambda d: scores[d])
    metrics, items = result.metrics, result.items["letters-reranked"]
    assert (items["rank"].item() == 1) == (best == "d0") and (best == "d0" or items["found"].item() == best)
    assert metrics["letters-reranked/recall@1"] == float(best == "d0") and metrics["letters-bm25/mrr@10"] == 1


def test_what_is_no_cross_encoder_is_refused(tmp_path):
    encoder = tiny()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="loss=cross_encoder"):
        CrossEncoder(str(tmp_path))


def test_an_evaluator_of_embeddings_does_not_choose_its_checkpoint(tmp_path, pairs, capsys):
    with pytest.raises(SystemExit):
        train(["encoder=tiny", "loss=cross_encoder", "data=pairs", f"data.path={pairs}", f"outputs={tmp_path}"])
    assert "eval=none select=last" in capsys.readouterr().err


def test_classes_are_no_score(tmp_path):
    """Which of two or three classes means that texts fit, no file says; the first one often means that they do not."""
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="into 2 classes"):
        CrossEncoder(str(tmp_path))
