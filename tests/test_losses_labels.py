"""SupCon, NT-Xent, triplets and debiasing against loops written from the papers' formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

from making import learns, vectors
from unitsphere.errors import UsageError
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.nt_xent import NTXent
from unitsphere.losses.supcon import SupCon
from unitsphere.losses.triplet import Triplet

st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")


def cosine(a, b):
    return float(F.cosine_similarity(a.detach(), b.detach(), dim=0))


def slow_supcon(z, labels, tau):
    total, rows = 0.0, 0
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        if not positives:
            continue
        rows += 1
        denominator = sum(math.exp(cosine(z[i], z[a]) / tau) for a in range(len(z)) if a != i)
        total -= sum(cosine(z[i], z[p]) / tau - math.log(denominator) for p in positives) / len(positives)
    return total / rows


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2]])
@pytest.mark.parametrize("views", [1, 2])
def test_supcon_equals_the_formula(labels, views):
    e = vectors(views=views, labels=labels)
    expected = slow_supcon(torch.cat(e.anchors), labels * views, 0.1)
    assert SupCon(0.1, views)(e).total.item() == pytest.approx(expected, rel=1e-5)


def test_supcon_of_one_class_alone_is_zero_gradient_not_nan():
    e = vectors(labels=[0, 1, 2, 3, 4, 5])
    total = SupCon(0.1, views=1)(e).total
    total.backward()
    assert float(total) == 0 and torch.isfinite(e.anchors[0].grad).all()


def test_nt_xent_equals_the_formula():
    e = vectors(views=2)
    z, n = torch.cat(e.anchors), 6
    expected = 0.0
    for i in range(2 * n):
        twin = (i + n) % (2 * n)
        others = sum(math.exp(cosine(z[i], z[k]) / 0.05) for k in range(2 * n) if k != i)
        expected -= cosine(z[i], z[twin]) / 0.05 - math.log(others)
    assert NTXent(0.05)(e).total.item() == pytest.approx(expected / (2 * n), rel=1e-5)


def test_nt_xent_leaves_equal_texts_out():
    e = vectors(n=3, views=2, ids={"anchor": [7, 7, 8]})
    z = torch.cat(e.anchors)
    allowed = {0: [3, 2, 5], 1: [4, 2, 5], 2: [5, 0, 1, 3, 4]}
    expected = 0.0
    for i in range(6):
        j = (i + 3) % 6
        others = [k if i < 3 else (k + 3) % 6 for k in allowed[i % 3]]
        expected -= cosine(z[i], z[j]) / 0.1 - math.log(sum(math.exp(cosine(z[i], z[k]) / 0.1) for k in others))
    assert NTXent(0.1)(e).total.item() == pytest.approx(expected / 6, rel=1e-5)


def slow_triplet(e, miner, margin, distance):
    ids = {k: v.tolist() for k, v in e.batch.text_ids.items()}
    owners = e.batch.negative_rows.tolist()
    per_row, every = [], []
    for i in range(len(e.positives)):
        to_positive = distance(e.anchors[0][i], e.positives[i])
        found = []
        for j in range(len(e.positives)):
            same = ids["positive"][j] in (ids["anchor"][i], ids["positive"][i]) or ids["anchor"][i] == ids["anchor"][j]
            if miner != "explicit" and not same:
                found.append(distance(e.anchors[0][i], e.positives[j]))
        for m, owner in enumerate(owners):
            if (miner != "explicit" or owner == i) and ids["negative"][m] not in (ids["anchor"][i], ids["positive"][i]):
                found.append(distance(e.anchors[0][i], e.negatives[m]))
        if miner == "semi_hard":
            found = [d for d in found if to_positive < d < to_positive + margin]
        hinges = [max(0.0, to_positive - d + margin) for d in found]
        per_row.append(max(hinges, default=0.0))
        every += hinges
    if miner == "explicit":
        return sum(every) / len(every)
    if miner == "all":
        return sum(every) / sum(h > 0 for h in every)
    return sum(per_row) / len(per_row)


@pytest.mark.parametrize("miner", ["explicit", "hard", "semi_hard", "all"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_triplet_equals_the_formula(miner, distance):
    e = vectors(
        owners=(0, 0, 3),
        ids={"anchor": [0, 1, 2, 3, 3, 5], "positive": [100, 101, 101, 103, 104, 105], "negative": [200, 101, 202]},
    )
    measure = {
        "cosine": lambda a, b: 1 - cosine(a, b),
        "euclidean": lambda a, b: float((a - b).detach().norm()),
    }[distance]
    loss = Triplet(margin=0.7, distance=distance, miner=miner)
    assert loss(e).total.item() == pytest.approx(slow_triplet(e, miner, 0.7, measure), rel=1e-5)


def test_triplet_equals_sentence_transformers():
    e = vectors(owners=tuple(range(6)))
    theirs = st.TripletLoss(torch.nn.Identity(), triplet_margin=5)
    expected = theirs.compute_loss_from_embeddings([e.anchors[0], e.positives, e.negatives], None)
    ours = Triplet(margin=5, distance="euclidean", miner="explicit")(e).total
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("prior", [0.0, 0.1, 0.9])
def test_debiased_equals_the_formula(prior):
    e = vectors(owners=(0, 2))
    expected, tau = 0.0, 0.5
    for i in range(6):
        positive = math.exp(cosine(e.anchors[0][i], e.positives[i]) / tau)
        others = [cosine(e.anchors[0][i], e.positives[j]) for j in range(6) if j != i]
        others += [cosine(e.anchors[0][i], z) for z in e.negatives]
        n = len(others)
        g = (sum(math.exp(s / tau) for s in others) - n * prior * positive) / (1 - prior)
        expected -= math.log(positive / (positive + max(g, n * math.exp(-1 / tau))))
    assert InfoNCE(tau, class_prior=prior)(e).total.item() == pytest.approx(expected / 6, rel=1e-5)


def test_debiased_is_finite_at_low_temperature():
    e = vectors()
    total = InfoNCE(0.01, class_prior=0.1)(e).total
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(e.anchors[0].grad).all()


@pytest.mark.parametrize("loss", [SupCon(0.1, 1), NTXent(), Triplet(), Triplet(miner="all"), InfoNCE(class_prior=0.1)])
def test_twenty_steps_lower_the_loss(loss):
    first, last = learns(loss, vectors(views=2, owners=(0, 1), labels=[0, 0, 1, 1, 2, 2]))
    assert last < first


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SupCon(views=0), "loss.views=0"),
        (lambda: Triplet(miner="easy"), "semi_hard"),
        (lambda: InfoNCE(class_prior=1.0), "class_prior=1.0"),
        (lambda: InfoNCE(temperature=0), "loss.temperature=0"),
        (lambda: NTXent(temperature=-1), "loss.temperature=-1"),
    ],
)
def test_wrong_settings_are_refused(make, text):
    with pytest.raises(UsageError, match=text):
        make()
