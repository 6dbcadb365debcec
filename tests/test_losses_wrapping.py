"""Losses that hold other losses: sum, Matryoshka, projector, memory queue."""

from dataclasses import replace

import pytest
import torch

from conftest import composed
from making import CPU, batch_of_texts, encoded, model, vectors
from unitsphere import paths
from unitsphere.encoders.pair_scorer import PairScorer
from unitsphere.errors import UsageError
from unitsphere.losses.anchored import Anchored
from unitsphere.losses.cross_encoder import RankedPairs
from unitsphere.losses.distil import Relational, Response
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.margin_mse import MarginMSE
from unitsphere.losses.matryoshka import Matryoshka, halves
from unitsphere.losses.projected import Projected
from unitsphere.losses.queue import MemoryQueue
from unitsphere.losses.simcse import SimCSE
from unitsphere.losses.sum import Sum
from unitsphere.losses.triplet import Triplet

COLUMNS = "tokens", "text_ids", "texts"  # of a batch, by column


def test_a_sum_adds_its_terms_by_weight():
    e = vectors(views=2)
    loss = Sum({"a": InfoNCE(), "b": SimCSE()}, {"b": 0.3})
    out = loss(e)
    torch.testing.assert_close(out.total, InfoNCE()(e).total + 0.3 * SimCSE()(e).total)
    assert (
        set(out.parts) == {"a", "b", "a/negatives", "b/negatives"}
        and loss.views == 2
        and loss.needs == ("anchor", "positive")
    )
    assert loss.embeds and not Sum({"a": InfoNCE(), "b": RankedPairs(PairScorer)}).embeds
    with pytest.raises(UsageError, match="no term 'c'"):
        Sum({"a": InfoNCE()}, {"c": 1.0})


@pytest.mark.parametrize("name", [file.stem for file in sorted((paths.conf() / "loss").glob("*.yaml"))])
def test_every_loss_composes_inside_another(name):
    teacher = {"distil_features": "loss.inner.terms.features.teacher.path=/t"}.get(name, "loss.inner.teacher.path=/t")
    given = [teacher] if name.startswith(("distil", "margin")) else []
    inner = composed("loss=l2sp", f"loss@loss.inner={name}", *given).loss.inner
    if name == "distil_features":
        assert inner.terms.response.teacher.path == "/t"


def test_matryoshka_equals_sentence_transformers():
    st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")
    e, dims, weights = vectors(n=5), [8, 4, 2], [1.0, 0.5, 2.0]
    expected = 0.0
    for d, w in zip(dims, weights, strict=True):
        theirs = st.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
        expected += w * theirs.compute_loss_from_embeddings([e.anchors[0][:, :d], e.positives[:, :d]], None)
    torch.testing.assert_close(Matryoshka(InfoNCE(), dims, weights)(e).total, expected)


class Fixed(torch.nn.Module):
    """A model that has known vectors, in the order in which they are asked for."""

    def __init__(self, *columns):
        super().__init__()
        self.columns = iter(columns)

    def forward(self, features):
        return {"sentence_embedding": next(self.columns)}

    def get_embedding_dimension(self):
        return 32


@pytest.mark.parametrize("kind", ["margin", "triplet"])
def test_cut_vectors_are_normalised_where_whole_ones_are(kind):
    st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")
    loose, scores = vectors(n=4, d=32, owners=range(4), scores=[0.1, 0.5, 0.9, 0.2]), torch.tensor([0.1, 0.5, 0.9, 0.2])
    a, p, n = (
        torch.nn.functional.normalize(z, dim=-1).detach() for z in (*loose.anchors, loose.positives, loose.negatives)
    )
    e, fixed = replace(loose, anchors=(a,), positives=p, negatives=n), Fixed(a, p, n)
    if kind == "margin":
        inner, theirs = MarginMSE(), st.MarginMSELoss(fixed)
    else:
        inner = Triplet(margin=0.5, distance="euclidean", miner="explicit")
        theirs = st.TripletLoss(fixed, triplet_margin=0.5)
    loss = Matryoshka(inner, [32, 8, 4])
    loss.attach(model())
    expected = st.MatryoshkaLoss(fixed, theirs, [32, 8, 4])([{}, {}, {}], scores)
    torch.testing.assert_close(loss(e).total, expected)
    loss.attach(model(normalize=False))
    plain = sum(
        inner(
            replace(
                loose,
                anchors=(loose.anchors[0][:, :d],),
                positives=loose.positives[:, :d],
                negatives=loose.negatives[:, :d],
            )
        ).total
        for d in (32, 8, 4)
    )
    torch.testing.assert_close(loss(loose).total, plain)


def test_matryoshka_without_dims_takes_the_width_and_powers_of_two():
    assert halves(768) == [768, 512, 256, 128, 64, 32] and halves(48) == [48, 32] and halves(32) == [32]
    loss, e = Matryoshka(InfoNCE()), vectors(n=5, d=32)
    loss.attach(model())
    torch.testing.assert_close(loss(e).total, InfoNCE()(e).total)


def test_matryoshka_refuses_dims_that_are_not_there():
    with pytest.raises(UsageError, match="vectors are 32 wide"):
        Matryoshka(InfoNCE(), [64]).attach(model())
    with pytest.raises(UsageError, match="one weight for each"):
        Matryoshka(InfoNCE(), [8, 4], [1.0])


def test_the_projector_sees_all_views_and_columns_at_once():
    torch.manual_seed(0)
    e = vectors(n=6, views=2, owners=(0, 3), d=32)
    loss = Projected(InfoNCE())
    loss.attach(model())
    first, norm, _, second, last = loss.projector
    z = torch.cat([*e.anchors, e.positives, e.negatives])
    hidden = first(z)
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    out = second(hidden.clamp(min=0))
    out = (out - out.mean(0)) / (out.var(0, unbiased=False) + last.eps).sqrt()
    a, b, p, n = out.split([6, 6, 6, 2])
    expected = InfoNCE()(replace(e, anchors=(a, b), positives=p, negatives=n)).total
    torch.testing.assert_close(loss(e).total, expected, atol=1e-5, rtol=1e-5)


def test_the_queue_is_infonce_over_what_it_remembers():
    loss = MemoryQueue(InfoNCE(), size=8)
    loss.attach(model())
    batches = [vectors(n=6, d=32, seed=s, ids={"positive": range(10 * s, 10 * s + 6)}) for s in range(3)]
    for seen, e in enumerate(batches):
        past = [(z, t) for b in batches[:seen] for z, t in zip(b.positives, b.batch.text_ids["positive"], strict=True)]
        past = past[-8:]
        if past:
            old, text = torch.stack([z for z, _ in past]).detach(), torch.stack([t for _, t in past])
            ids = {**e.batch.text_ids, "negative": text}
            known = replace(
                e, negatives=old, batch=replace(e.batch, text_ids=ids, negative_rows=torch.full_like(text, -1))
            )
        else:
            known = e
        torch.testing.assert_close(loss(e).total, InfoNCE()(known).total)


def test_a_remembered_text_is_no_negative_of_itself():
    loss = MemoryQueue(InfoNCE(), size=8)
    loss.attach(model())
    e = vectors(n=3, d=32)
    loss(e)
    # Row i meets the other rows' positives twice, once from memory, and its own only once.
    a, p = (torch.nn.functional.normalize(x, dim=-1) for x in (e.anchors[0], e.positives))
    similarity = a @ p.T / 0.05
    own = similarity.diagonal()
    others = similarity.exp().sum(dim=1) - own.exp()
    expected = -(own - (own.exp() + 2 * others).log()).mean()
    torch.testing.assert_close(loss(e).total, expected, atol=1e-4, rtol=1e-4)


def test_the_momentum_encoder_follows_slowly():
    embedder, loss = model(dropout=0.0), MemoryQueue(InfoNCE(), size=8, momentum=0.9)
    loss.attach(embedder)
    before = {n: p.clone() for n, p in embedder.named_parameters()}
    with torch.no_grad():
        for p in embedder.parameters():
            p.add_(1.0)
    e = encoded(embedder, batch_of_texts(), loss)
    loss(e).total.backward()
    for name, slow in loss.slow.named_parameters():
        torch.testing.assert_close(slow, 0.9 * before[name] + 0.1 * (before[name] + 1.0))
        assert slow.grad is None
    expected = loss.slow(embedder.encoder.pad(batch_of_texts().tokens["positive"]))
    torch.testing.assert_close(loss.vectors[:6], expected.detach(), atol=1e-5, rtol=1e-5)
    assert loss.vectors.device == CPU


def test_a_queue_needs_positives():
    for inner in (SimCSE(), MarginMSE()):
        with pytest.raises(UsageError, match="no use for"):
            MemoryQueue(inner)


def test_a_queue_remembers_vectors_alone():
    with pytest.raises(UsageError, match="no use for"):
        MemoryQueue(RankedPairs(PairScorer))


READERS = {
    "anchored": lambda: Anchored(InfoNCE(), 2.0),
    "response": lambda: Response(lambda: model(seed=5)),
    "relational": lambda: Relational(lambda: model(seed=5)),
    "margin_mse": MarginMSE,
}


@pytest.mark.parametrize(
    ("name", "negatives"),
    [*((name, True) for name in READERS), *((name, False) for name in READERS if "mse" not in name)],
)
def test_what_reads_texts_sees_no_remembered_vectors(name, negatives):
    batch, embedder = batch_of_texts(), model(dropout=0.0)
    if not negatives:
        given = {part: {c: v for c, v in getattr(batch, part).items() if c != "negative"} for part in COLUMNS}
        batch = replace(batch, negative_rows=batch.negative_rows[:0], **given)
    outs = []
    for around in (lambda loss: loss, lambda loss: MemoryQueue(loss, size=8)):
        loss = around(Sum({"infonce": InfoNCE(), "reader": READERS[name]()}))
        loss.attach(embedder)
        with torch.no_grad():
            for p in embedder.parameters():  # from where an anchor holds it
                p += 0.01
            outs.append([loss(encoded(embedder, batch, loss)) for _ in range(2)][1].parts)
            for p in embedder.parameters():
                p -= 0.01
    plain, queued = outs
    assert float(queued["remembered"]) == 6 and queued["infonce"] > plain["infonce"]
    part = "reader/drift" if name == "anchored" else "reader"
    assert plain[part] > 0
    torch.testing.assert_close(queued[part], plain[part])


def test_a_term_of_a_sum_sees_the_views_it_asks_for():
    e = vectors(views=2)
    out = Sum({"fixed": SimCSE(fixed_mask=True), "both": SimCSE()})(e)
    torch.testing.assert_close(out.parts["fixed"], SimCSE()(replace(e, anchors=(e.anchors[0],) * 2)).total)
    torch.testing.assert_close(out.parts["both"], SimCSE()(e).total)


def test_matryoshka_does_not_wrap_what_reads_one_width():
    for inner in (Projected(InfoNCE()), MemoryQueue(InfoNCE()), Sum({"a": InfoNCE(), "b": Projected(InfoNCE())})):
        with pytest.raises(UsageError, match="one width only"):
            Matryoshka(inner, [8])
