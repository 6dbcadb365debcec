"""CoSENT, AnglE, cosine regression and online contrastive against loops and sentence-transformers."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from making import learns, vectors
from unitsphere.errors import UsageError
from unitsphere.losses.angle import Angle
from unitsphere.losses.cosent import CoSENT
from unitsphere.losses.cosine import CosineSimilarity
from unitsphere.losses.nt_xent import ScoredNTXent
from unitsphere.losses.online_contrastive import OnlineContrastive

st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")
SCORES = [0.0, 0.2, 0.2, 1.0, 0.6, 0.8]
BINARY = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def slow_ranked(similarity, scores, tau):
    n = len(scores)
    pairs = [(i, j) for i in range(n) for j in range(n) if scores[i] < scores[j]]
    return math.log(1 + sum(math.exp((similarity[i] - similarity[j]) / tau) for i, j in pairs))


def test_cosent_equals_the_formula():
    e = vectors(scores=SCORES)
    similarity = F.cosine_similarity(e.anchors[0], e.positives).tolist()
    assert float(CoSENT(0.3)(e).total) == pytest.approx(slow_ranked(similarity, SCORES, 0.3), rel=1e-5)


def test_angle_equals_complex_division():
    e = vectors(scores=SCORES)
    similarity = []
    for x, y in zip(e.anchors[0].detach(), e.positives.detach(), strict=True):
        a, b = torch.complex(*x.chunk(2)), torch.complex(*y.chunk(2))
        # the quotient as the paper writes it: by the squared norm of the whole vector, not of each number
        quotient = a * b.conj() / y.norm() ** 2 * (y.norm() / x.norm())
        similarity.append(abs(float(quotient.real.sum() + quotient.imag.sum())))
    assert float(Angle(0.3)(e).total) == pytest.approx(slow_ranked(similarity, SCORES, 0.3), rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "scores"),
    [
        (CoSENT(0.05), lambda: st.CoSENTLoss(torch.nn.Identity(), scale=20.0), SCORES),
        (Angle(0.05), lambda: st.AnglELoss(torch.nn.Identity(), scale=20.0), SCORES),
        (CosineSimilarity(), lambda: st.CosineSimilarityLoss(torch.nn.Identity()), SCORES),
        (OnlineContrastive(0.5), lambda: st.OnlineContrastiveLoss(torch.nn.Identity(), margin=0.5), BINARY),
        (OnlineContrastive(0.9), lambda: st.OnlineContrastiveLoss(torch.nn.Identity(), margin=0.9), [1.0] * 6),
    ],
    ids=["cosent", "angle", "cosine", "online", "online-one-kind"],
)
def test_equals_sentence_transformers(ours, theirs, scores):
    e = vectors(scores=scores)
    expected = theirs().compute_loss_from_embeddings([e.anchors[0], e.positives], torch.tensor(scores))
    torch.testing.assert_close(ours(e).total, expected, atol=1e-5, rtol=1e-5)


def in_batch_loop(first, second, scores, tau, positive_from):
    """AnglE's in-batch term: each text of a pair with a high score looks for the other among all texts but itself."""
    z = [F.normalize(x, dim=0) for pair in zip(first.detach(), second.detach(), strict=True) for x in pair]
    losses = []
    for i, x in enumerate(z):
        if scores[i // 2] >= positive_from:
            against = [math.exp(float(x @ y) / tau) for j, y in enumerate(z) if j != i]
            losses.append(-math.log(math.exp(float(x @ z[i ^ 1]) / tau) / sum(against)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scores", [SCORES, BINARY])
def test_in_batch_negatives_of_scored_pairs_equal_the_loop(scores):
    e = vectors(scores=scores)
    expected = in_batch_loop(e.anchors[0], e.positives, scores, tau=0.3, positive_from=0.8)
    out = ScoredNTXent(0.8, 0.3)(e)
    assert float(out.total) == pytest.approx(expected, rel=1e-5)
    positives = sum(score >= 0.8 for score in scores)
    assert float(out.parts["negatives"]) == pytest.approx((positives * 2 * 10 + (6 - positives) * 2 * 11) / 12)


def test_in_batch_negatives_without_a_high_score_ask_for_nothing():
    e = vectors(scores=[0.1] * 6)
    total = ScoredNTXent()(e).total
    total.backward()
    assert float(total) == 0 and e.positives.grad.abs().max() == 0


def test_the_texts_of_a_low_pair_are_negatives_of_the_others():
    loss, scores = ScoredNTXent(temperature=0.3), [1.0, 0.0]
    e = vectors(n=2, scores=scores)
    loss(e).total.backward()
    assert e.positives.grad[1].abs().max() > 0


def test_equal_scores_ask_for_nothing():
    assert float(CoSENT()(vectors(scores=[0.5] * 6)).total) == 0


@pytest.mark.parametrize(
    ("loss", "range_"), [(ScoredNTXent(), "[0, 1]"), (OnlineContrastive(), "[0, 1]"), (CosineSimilarity(), "[-1, 1]")]
)
def test_scores_of_another_range_are_refused(loss, range_):
    for score in (5.0, -2.0, math.nan):
        with pytest.raises(UsageError, match=rf"score of {score:g} is not in {re.escape(range_)}.*data\.max_score=5"):
            loss(vectors(scores=[score, *SCORES[1:]]))
    assert float(CosineSimilarity()(vectors(scores=[-1.0] * 6)).total) > 0


@pytest.mark.parametrize("loss", [CoSENT(), Angle(), CosineSimilarity(), ScoredNTXent()])
def test_twenty_steps_lower_the_loss(loss):
    first, last = learns(loss, vectors(scores=SCORES))
    assert last < first
