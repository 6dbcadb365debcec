"""The static student: its table against every token run alone, its vectors against sentence-transformers'."""

import numpy as np
import pytest
import torch

from conftest import composed
from unitsphere import artefact
from unitsphere.build import build
from unitsphere.compression.static import Static
from unitsphere.compression.step import Context
from unitsphere.compression.structured import PruneHeads
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.static import StaticModel

TEXTS = ["A red fish.", "an old tree by the river, and a car", "x", "sort a list: 1, 2, 3", "long " * 60]
PAIRS = [("sort a list", "sorted(list)"), ("find a tree", "the tree in a graph"), ("it", "it")]


def embedder_of(pooling="mean", **options):
    encoder = tiny()
    torch.manual_seed(0)
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    pooler = {"mean": "unitsphere.pooling.mean.MeanPooling", "cls": "unitsphere.pooling.cls.CLSPooling"}[pooling]
    node = {"_target_": "unitsphere.embedder.Embedder", **options}
    return artefact.assemble(encoder, {"_target_": pooler}, node).eval()


def context(tmp_path, pairs=PAIRS):
    return Context(pairs, None, tmp_path)


def slow(pooling, texts, dim, a, p):
    """Vectors (R, dim), up to a rotation: tokens one by one, PCA by singular values, a loop over the tokens."""
    encoder = embedder_of(pooling).encoder
    tokenizer, model = encoder.tokenizer, encoder.model
    ids = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    rows = []
    for index in ids:
        tokens = torch.tensor([[tokenizer.cls_token_id, index, tokenizer.sep_token_id]])
        states = model(input_ids=tokens).last_hidden_state[0].detach().double().numpy()
        rows.append(states.mean(axis=0) if pooling == "mean" else states[0])
    rows = np.array(rows) - np.mean(rows, axis=0)
    rows = rows @ np.linalg.svd(rows)[2][:dim].T
    weights, vectors = {index: a / (a + p(ids, index)) for index in ids}, []
    for text in texts:
        total = np.zeros(rows.shape[1])
        for index in tokenizer(text, add_special_tokens=False)["input_ids"][:126]:
            if index in ids:
                total += weights[index] * rows[ids.index(index)]
        vectors.append(total / np.linalg.norm(total))
    return np.array(vectors)


READ = [
    index for pair in PAIRS for text in pair for index in tiny().tokenizer(text, add_special_tokens=False)["input_ids"]
]


def counted(ids, index):
    return READ.count(index) / len(READ)


def zipf(ids, index):
    """As model2vec's `compute_weights` has it."""
    return 1 / (ids.index(index) + 2) / sum(1 / (rank + 2) for rank in range(len(ids)))


@pytest.mark.parametrize("frequencies", [counted, zipf])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_table_is_every_token_alone(pooling, frequencies, tmp_path):
    step = Static(dim=7, a=1e-2, frequencies={counted: "texts", zipf: "zipf"}[frequencies])
    model = step.apply(embedder_of(pooling), context(tmp_path))
    ours, expected = model.encode(TEXTS), slow(pooling, TEXTS, 7, 1e-2, frequencies)
    assert ours.shape == (5, 7) and ours.dtype == np.float32
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-4)
    assert abs(ours @ ours.T - 1).max() > 0.1


def test_without_pca_and_with_a_projection(tmp_path):
    whole = embedder_of(projection_dim=5)
    tokenizer, encoder = whole.encoder.tokenizer, whole.encoder
    rows = []
    for piece in "abz":
        tokens = torch.tensor([[2, tokenizer.convert_tokens_to_ids(piece), 3]])
        rows.append(whole.projection(encoder.model(input_ids=tokens).last_hidden_state[0].mean(dim=0)).detach())
    model = Static(dim=None, a=1e9).apply(whole, context(tmp_path))
    expected = torch.nn.functional.normalize(torch.stack([rows[0], rows[1] + rows[2]]), dim=1)
    np.testing.assert_allclose(model.encode(["a", "b z"]), expected, atol=1e-5)


def test_it_is_saved_and_loads_here_and_in_sentence_transformers(tmp_path):
    model = Static(dim=8).apply(embedder_of(), context(tmp_path))
    artefact.save(model, tmp_path / "run" / "model")
    again = artefact.load(tmp_path / "run")
    assert isinstance(again, StaticModel) and again.identity() == model.identity()
    texts = [*TEXTS, "鱼 🙂", ""]  # of the last two no token has a row
    vectors = model.encode(texts)
    np.testing.assert_array_equal(again.encode(texts), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 1, 0, 0], atol=1e-6)
    assert model.embed(["a"], "query").shape == (1, 8) and model.protocol()["pooling"] == "static"
    other = Static(dim=8, a=1e-2).apply(embedder_of(), context(tmp_path))
    assert other.identity() != model.identity()
    library = pytest.importorskip("sentence_transformers", reason="a dev dependency")
    theirs = library.SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), vectors, atol=1e-6)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at most 32"):
        Static(dim=64).apply(embedder_of(), context(tmp_path))
    with pytest.raises(UsageError, match="zipf needs none"):
        Static(dim=8).apply(embedder_of(), context(tmp_path, []))
    for wrong in ({"a": 0.0}, {"dim": 0}, {"frequencies": "rank"}):
        with pytest.raises(UsageError, match="would fit"):
            Static(**wrong)
    model = Static(dim=8).apply(embedder_of(), context(tmp_path))
    with pytest.raises(UsageError, match="StaticModel has none"):
        PruneHeads().apply(model, context(tmp_path))


def test_the_option_builds():
    assert build(composed("compression=static").compression.static).dim == 256
