"""InfoNCE and SimCSE against a double loop, against sentence-transformers, and on a toy that can be learnt."""

import math

import pytest
import torch
from torch.nn import functional as F

from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.simcse import SimCSE
from unitsphere.types import Batch, Embeddings


def made(n=5, owners=(0, 0, 2, 4), d=8, anchor=None, positive=None, negative=None, seed=0):
    """Random embeddings of n rows with len(owners) negatives; text ids are all different unless given."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(k, d, generator=generator, requires_grad=True) for k in (n, n, len(owners))]
    ids = {
        "anchor": torch.tensor(anchor or range(n)),
        "positive": torch.tensor(positive or range(100, 100 + n)),
        "negative": torch.tensor(negative or range(200, 200 + len(owners))),
    }
    batch = Batch({}, ids, torch.tensor(owners, dtype=torch.long), torch.arange(n))
    return Embeddings((vectors[0],), vectors[1], vectors[2] if owners else None, batch)


def cosine(a, b):
    return float((a @ b / (a.norm() * b.norm())).detach())


def slow(e, tau, weight, mask_duplicates):
    """-mean_i log(exp(s_ii / tau) / sum_j exp(s_ij / tau + bonus)), one number at a time."""
    ids, total, n = {k: v.tolist() for k, v in e.batch.text_ids.items()}, 0.0, len(e.positives)
    for i in range(n):
        denominator = 0.0
        for j in range(n):
            twin = ids["anchor"][i] == ids["anchor"][j] or ids["positive"][j] in (ids["positive"][i], ids["anchor"][i])
            if j == i or not (mask_duplicates and twin):
                denominator += math.exp(cosine(e.anchors[0][i], e.positives[j]) / tau)
        for m, owner in enumerate(e.batch.negative_rows.tolist() if e.negatives is not None else []):
            if not (mask_duplicates and ids["negative"][m] in (ids["positive"][i], ids["anchor"][i])):
                bonus = weight if owner == i else 0.0
                denominator += math.exp(cosine(e.anchors[0][i], e.negatives[m]) / tau + bonus)
        total -= cosine(e.anchors[0][i], e.positives[i]) / tau - math.log(denominator)
    return total / n


@pytest.mark.parametrize("weight", [0.0, math.log(2)])
@pytest.mark.parametrize("mask_duplicates", [True, False])
@pytest.mark.parametrize("owners", [(), (0, 0, 2, 4)])
def test_infonce_equals_the_double_loop(owners, mask_duplicates, weight):
    e = made(
        owners=owners, anchor=[0, 1, 1, 3, 4], positive=[10, 11, 12, 10, 0], negative=[10, 30, 4, 31][: len(owners)]
    )
    loss = InfoNCE(0.1, hard_negative_weight=weight, mask_duplicates=mask_duplicates)
    assert loss(e).total.item() == pytest.approx(slow(e, 0.1, weight, mask_duplicates), rel=1e-5)


def test_masking_and_weight_change_the_loss():
    """The oracle above would agree with a loss that ignored both; so they must matter."""
    e = made(anchor=[0, 1, 1, 3, 4])
    assert InfoNCE()(e).total.item() < InfoNCE(mask_duplicates=False)(e).total.item()
    assert InfoNCE(hard_negative_weight=1.0)(e).total.item() > InfoNCE()(e).total.item()


def test_symmetric_is_the_mean_of_both_directions():
    e = made(owners=())
    back = Embeddings((e.positives,), e.anchors[0], None, e.batch)
    expected = (InfoNCE()(e).total + InfoNCE()(back).total) / 2
    torch.testing.assert_close(InfoNCE(symmetric=True)(e).total, expected)


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_infonce_equals_sentence_transformers(negatives):
    st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")
    n = 6
    e = made(n=n, owners=tuple(k for _ in range(negatives) for k in range(n)))
    columns = [e.anchors[0], e.positives, *(e.negatives.split(n) if negatives else ())]
    theirs = st.MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=20.0)
    expected = theirs.compute_loss_from_embeddings(list(columns), None)
    torch.testing.assert_close(InfoNCE(temperature=1 / 20)(e).total, expected)


def test_simcse_equals_the_official_arithmetic():
    """Rows are the first view only; cosine over temperature; cross-entropy with the diagonal (Gao et al., models.py)."""
    torch.manual_seed(3)
    z1, z2 = torch.randn(7, 8), torch.randn(7, 8)
    e = Embeddings((z1, z2), None, None, Batch({}, {"anchor": torch.arange(7)}, torch.tensor([]), torch.arange(7)))
    similarity = F.cosine_similarity(z1.unsqueeze(1), z2.unsqueeze(0), dim=-1) / 0.05
    expected = torch.nn.CrossEntropyLoss()(similarity, torch.arange(7))
    torch.testing.assert_close(SimCSE()(e).total, expected)


def test_simcse_leaves_equal_texts_out_of_the_negatives():
    z = torch.eye(3)
    batch = Batch({}, {"anchor": torch.tensor([5, 5, 6])}, torch.tensor([]), torch.arange(3))
    e = Embeddings((z, z), None, None, batch)
    row = math.log(1 + math.exp(-20))  # rows 0 and 1 have one negative each, row 2 has two
    expected = (2 * row + math.log(1 + 2 * math.exp(-20))) / 3
    assert float(SimCSE()(e).total) == pytest.approx(expected, abs=1e-6)


def test_logits_are_fp32_under_autocast():
    e = made()
    with torch.autocast("cpu", torch.bfloat16):
        assert InfoNCE()(e).total.dtype == torch.float32
        inside = InfoNCE()(e).total
    torch.testing.assert_close(inside, InfoNCE()(e).total, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [InfoNCE(), InfoNCE(symmetric=True, hard_negative_weight=1.0)])
def test_twenty_steps_lower_the_loss(loss):
    e = made()
    optimizer = torch.optim.SGD([*e.anchors, e.positives, e.negatives], lr=1.0)
    first = float(loss(e).total)
    for _ in range(20):
        optimizer.zero_grad()
        loss(e).total.backward()
        optimizer.step()
    assert float(loss(e).total) < first / 2


def test_a_batch_of_one_has_no_negatives():
    assert float(InfoNCE()(made(n=1, owners=())).total) == pytest.approx(0.0, abs=1e-6)


def test_the_number_of_negatives_is_reported():
    e = made(n=4, owners=(0, 0, 2), anchor=[1, 1, 2, 3])
    # rows 0 and 1 share an anchor, so each has one positive fewer to be compared with
    assert float(InfoNCE()(e).parts["negatives"]) == (3 + 3 - 0.5)


def test_a_fixed_mask_compares_a_view_with_itself():
    torch.manual_seed(3)
    z, ids = torch.randn(5, 8), {"anchor": torch.arange(5)}
    batch = Batch({}, ids, torch.tensor([]), torch.arange(5))
    one, both = SimCSE(fixed_mask=True), SimCSE()
    assert (one.views, both.views) == (1, 2)
    once, twice = Embeddings((z,), None, None, batch), Embeddings((z, z), None, None, batch)
    torch.testing.assert_close(one(once).total, both(twice).total)
