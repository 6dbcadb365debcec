"""CoSENT, AnglE, cosine regression and online contrastive against loops and sentence-transformers."""

import math

import pytest
import torch
from torch.nn import functional as F

from making import learns, vectors
from unitsphere.losses.angle import Angle
from unitsphere.losses.cosent import CoSENT
from unitsphere.losses.cosine import CosineSimilarity
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


def test_equal_scores_ask_for_nothing():
    assert float(CoSENT()(vectors(scores=[0.5] * 6)).total) == 0


@pytest.mark.parametrize("loss", [CoSENT(), Angle(), CosineSimilarity()])
def test_twenty_steps_lower_the_loss(loss):
    first, last = learns(loss, vectors(scores=SCORES))
    assert last < first
