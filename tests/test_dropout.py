"""Dropout by sixteen bits a number is dropout."""

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.utils.checkpoint import checkpoint

from unitsphere.encoders.dropout import Dropout, draw_fast, dropout
from unitsphere.encoders.tiny import tiny

COUNT = 200_003


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_each_number_is_dropped_with_probability_p_and_the_others_are_scaled(p):
    torch.manual_seed(0)
    x = torch.linspace(1, 2, COUNT)
    y = dropout(x, p)
    gone = y == 0
    assert binomtest(int(gone.sum()), COUNT, p).pvalue > 1e-3
    torch.testing.assert_close(y[~gone], x[~gone] / (1 - p), rtol=2e-4, atol=0)
    for lag in (1, 2, 3, 4, 5):  # those of one random word, and those of two
        both = int((gone[lag:] & gone[:-lag]).sum())
        assert binomtest(both, COUNT - lag, p * p).pvalue > 1e-3


def test_the_rounded_probability_is_what_is_divided_by():
    torch.manual_seed(0)
    p = 1e-4  # 6.5536 of 2^16 values: 7 are dropped
    y = dropout(torch.ones(10), p)
    assert y[y != 0].unique().item() == pytest.approx(65536 / (65536 - 7), rel=1e-7)


def test_the_gradient_passes_where_the_number_passed():
    x = torch.randn(5, 7, 3, dtype=torch.float64).transpose(0, 2).requires_grad_()
    y = dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert 0 < (gradient == 0).float().mean() < 1


def test_a_mask_follows_from_the_seed_and_is_another_one_each_time():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first) and not torch.equal(first, second)


def test_a_pass_that_is_computed_again_has_the_mask_that_it_had():
    x, w = torch.randn(40, 8), torch.randn(8, requires_grad=True)

    def pass_(x):
        return dropout((x * w).tanh(), 0.5).square().sum()

    gradients = []
    for run in (pass_, lambda x: checkpoint(pass_, x, use_reentrant=False)):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(run(x), w)[0])
    torch.testing.assert_close(*gradients)


def test_half_precision_stays_half():
    assert dropout(torch.ones(9, dtype=torch.bfloat16), 0.1).dtype == torch.bfloat16


def test_all_of_an_encoder_draws_so_in_training_and_nothing_is_dropped_in_evaluation():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.ModuleDict({"a": nn.Dropout(0.0)}))
    draw_fast(model)
    assert [type(m) for m in model.modules()].count(Dropout) == 2 and model[1].p == 0.2
    encoder = tiny()
    kinds = [type(m) for m in encoder.modules() if isinstance(m, nn.Dropout)]
    assert kinds and set(kinds) == {Dropout}
    x = torch.randn(4, 5)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
