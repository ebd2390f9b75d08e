"""Draws with replacement: how many, which ones first, how often, against formulas, brute force and averages."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.methods.data.draws import MOST_DRAWS, counts_of, draws_for, first_draws
from experiment.random_streams import generator


def rows(power: float, num: int, columns: int, seed: int = 0) -> Tensor:
    """Probabilities like |w|^power of Gaussian weights."""
    w_RC = torch.randn(num, columns, generator=generator("sampling", seed), dtype=torch.float64).abs() ** power
    return w_RC / w_RC.sum(1, keepdim=True)


def unique(p: np.ndarray, draws: float) -> float:
    """Small probabilities lose their digits in 1 - q."""
    return math.fsum(-math.expm1(draws * math.log1p(-q)) for q in p.tolist())


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("columns", [2, 9, 150])
def test_draws_are_the_smallest_number_that_hits_enough(power: float, columns: int) -> None:
    p_RC = rows(power, 12, columns)
    for wanted in sorted({2, columns // 2, columns - 1} & set(range(2, columns))):
        draws_R = draws_for(p_RC, torch.full((12,), wanted))
        assert torch.equal(draws_R, draws_R.round())
        for p, draws in zip(p_RC.numpy(), draws_R.tolist(), strict=True):
            assert unique(p, draws) >= wanted - 1e-9
            assert unique(p, draws - 1) < wanted


def test_equal_probabilities_have_a_closed_form() -> None:
    for n in (5, 64, 576):
        wanted = torch.arange(2, n)
        expected = [math.ceil(math.log(n / (n - s)) / math.log(n / (n - 1)) - 1e-9) for s in wanted.tolist()]
        assert draws_for(torch.full((n - 2, n), 1 / n, dtype=torch.float64), wanted).tolist() == expected


def test_none_and_one_are_returned_as_they_are() -> None:
    p_RC = rows(2, 3, 5)
    assert draws_for(p_RC, torch.tensor([0, 1, 1])).tolist() == [0, 1, 1]
    assert draws_for(torch.tensor([[1.0, 0, 0]], dtype=torch.float64), torch.tensor([1])).tolist() == [1]
    assert draws_for(torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_rows_do_not_depend_on_each_other() -> None:
    p_RC = rows(2, 6, 40)
    wanted_R = torch.tensor([1, 5, 39, 20, 0, 30])
    together = draws_for(p_RC, wanted_R).tolist()
    assert together == [float(draws_for(p_RC[i : i + 1], wanted_R[i : i + 1])) for i in range(6)]


def test_hopeless_items_end_the_search() -> None:
    """One item of probability 1e-30 would take 1e30 draws; more than 2^53 are none."""
    p_RC = torch.tensor([[0.5, 0.5 - 1e-12, 1e-12, 1e-30]], dtype=torch.float64)
    draws = float(draws_for(p_RC, torch.tensor([3])))
    assert unique(np.array([0.5, 0.5, 1e-12]), draws) > 2.99 or draws == MOST_DRAWS
    p_RC = torch.tensor([[1.0, 1e-30, 1e-40]], dtype=torch.float64)
    assert float(draws_for(p_RC, torch.tensor([2]))) == MOST_DRAWS


def test_hits_are_as_probable_as_the_formula_says() -> None:
    """The share of 4000 rows in which each item is among the first N draws: five standard errors."""
    p, num = rows(1, 1, 7, seed=3), 4000
    first_RC = first_draws(p.expand(num, -1).contiguous(), generator("first"))
    for draws in (1, 3, 10, 40):
        hit = (first_RC <= draws).double().mean(0)
        expected = 1 - (1 - p[0]) ** draws
        error = (expected * (1 - expected) / num).sqrt() + 1e-9
        assert ((hit - expected).abs() < 5 * error).all()


def test_first_draws_are_numbers_of_different_draws() -> None:
    p_RC = rows(2, 50, 30)
    p_RC[:, 4] = 0
    p_RC /= p_RC.sum(1, keepdim=True)
    first_RC = first_draws(p_RC, generator("first"))
    assert first_RC[:, 4].isinf().all()
    finite = first_RC[:, [c for c in range(30) if c != 4]]
    assert torch.equal(finite, finite.round())
    assert (finite.min(1).values == 1).all()
    assert (finite.sort(1).values.diff(dim=1) >= 1).all()
    assert first_draws(torch.zeros(2, 3, dtype=torch.float64), generator("none")).isinf().all()


@pytest.mark.parametrize("power", [0, 1, 2])
def test_counts_are_of_the_hit_items_and_sum_up_to_the_draws(power: float) -> None:
    p_RC = rows(power, 20, 25)
    draws_R = draws_for(p_RC, torch.arange(20) % 24 + 1)
    first_RC = first_draws(p_RC, generator("first"))
    counts_RC = counts_of(p_RC, first_RC, draws_R, generator("counts"))
    assert torch.equal(counts_RC > 0, first_RC <= draws_R[:, None])
    assert torch.equal(counts_RC.sum(1), draws_R)
    assert torch.equal(counts_RC, counts_RC.round())


def test_counts_have_the_moments_of_a_multinomial() -> None:
    """Means N p, variances N p (1 - p), covariances -N p_i p_j, over 20,000 rows."""
    p, draws, num = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64), 6, 20_000
    p_RC = p.expand(num, -1).contiguous()
    first_RC = first_draws(p_RC, generator("first"))
    counts_RC = counts_of(p_RC, first_RC, torch.full((num,), float(draws), dtype=torch.float64), generator("counts"))
    expected = draws * (torch.diag(p) - torch.outer(p, p))
    torch.testing.assert_close(counts_RC.mean(0), draws * p, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(counts_RC.T), expected, rtol=0, atol=0.06)


def test_counts_have_the_probabilities_of_a_multinomial() -> None:
    """Every outcome of 3 draws from 3 items, counted in 40,000 rows."""
    p, num = np.array([0.6, 0.3, 0.1]), 40_000
    p_RC = torch.tensor(p).expand(num, -1).contiguous()
    first_RC = first_draws(p_RC, generator("first"))
    counts = counts_of(p_RC, first_RC, torch.full((num,), 3.0, dtype=torch.float64), generator("counts")).long()
    found = {
        tuple(outcome): n
        for outcome, n in zip(*(x.tolist() for x in counts.unique(dim=0, return_counts=True)), strict=True)
    }
    for a in range(4):
        for b in range(4 - a):
            c = 3 - a - b
            ways = math.factorial(3) / (math.factorial(a) * math.factorial(b) * math.factorial(c))
            expected = num * ways * p[0] ** a * p[1] ** b * p[2] ** c
            assert abs(found.get((a, b, c), 0) - expected) < 5 * math.sqrt(expected) + 3
