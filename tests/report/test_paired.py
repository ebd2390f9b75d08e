"""Paired statistics against scipy, a real bootstrap, formulas by hand, and simulations whose truth is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiment.report.paired import between_networks, holm, mean_of, paired_difference


def draws(seed: int, networks: int, samples: int, skills: tuple[float, ...], differ: float = 0.0) -> "list[np.ndarray]":
    """Answers (R, N) of methods that share the difficulty of samples."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 2, samples)
    own = [rng.normal(0, 0.3, samples) + rng.normal(0, differ, (networks, 1)) for _ in skills]
    noise = [rng.normal(0, 1, (networks, samples)) for _ in skills]
    return [(skill + shared + o + n > 0).astype(float) for skill, o, n in zip(skills, own, noise, strict=True)]


def test_one_network_is_bonett_and_price() -> None:
    a, b = draws(0, 1, 400, (1.0, 0.7))
    n, gained, lost = 400, int((a > b).sum()), int((a < b).sum())
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    found = paired_difference(a, b)
    assert found.value == pytest.approx((gained - lost) / n)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), rel=2e-3)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(p12 - p21) / (half / stats.norm.ppf(0.975))), rel=5e-2)


def test_networks_alone_are_a_t_test() -> None:
    a, b = np.random.default_rng(1).normal(0, 1, (2, 5, 1))
    found, expected = paired_difference(a, b), stats.ttest_rel(a[:, 0], b[:, 0])
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    alone = paired_difference(a[:1], b[:1])
    assert (alone.low, alone.high, alone.p) == (-np.inf, np.inf, 1.0), "one network tells nothing about others"


def test_samples_are_a_bootstrap() -> None:
    """The variance over samples of three equal networks, against 4,000 draws with replacement."""
    values = np.repeat(np.random.default_rng(2).exponential(1, (1, 300)), 3, axis=0)
    drawn = np.random.default_rng(3).integers(0, 300, (4000, 300))
    spread = values.mean(0)[drawn].mean(1).std()
    found = mean_of(values)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(spread, rel=0.04)


def test_a_share_has_wilsons_interval() -> None:
    right = np.zeros((1, 50))
    right[0, :47] = 1
    expected = stats.binomtest(47, 50).proportion_ci(0.95, method="wilson")
    found = mean_of(right)
    assert (found.value, found.low, found.high) == pytest.approx((0.94, expected.low, expected.high))


def test_equal_networks_do_not_differ() -> None:
    a, _ = draws(4, 3, 200, (1.0, 1.0))
    found = paired_difference(a, a)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert found.p > 0.9
    numbers = np.random.default_rng(0).normal(0, 1, (2, 9))
    same = paired_difference(numbers, numbers)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_turning_a_pair_turns_its_interval() -> None:
    a, b = draws(5, 3, 500, (1.2, 0.9), 0.1)
    one, two = paired_difference(a, b), paired_difference(b, a)
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-two.value, -two.high, -two.low, two.p))


def test_holm() -> None:
    """The p-value times the number of those that are not smaller; at most 1, and never below that of a smaller one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("networks", "differ"), [(1, 0.0), (3, 0.1), (5, 0.1)])
def test_intervals_cover_the_truth(networks: int, differ: float) -> None:
    """400 simulated pairs; tests/benchmark/paired_intervals.py has a table of more cases and more draws."""
    truth = [stats.norm.cdf(s / np.sqrt(1 + 4 + 0.09 + differ**2)) for s in (1.5, 1.3)]
    covered = 0
    for seed in range(400):
        found = paired_difference(*draws(seed, networks, 500, (1.5, 1.3), differ))
        covered += found.low <= truth[0] - truth[1] <= found.high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize(("networks", "differ"), [(1, 0.0), (2, 0.1), (3, 0.1)])
def test_equal_methods_are_seldom_ordered(networks: int, differ: float) -> None:
    false = 0
    for seed in range(200):
        four = draws(seed, networks, 500, (1.5,) * 4, differ)
        pairs = list(itertools.combinations(four, 2))
        usual = float(np.median([between_networks(*pair) for pair in pairs]))
        false += min(holm([paired_difference(*pair, usual).p for pair in pairs])) < 0.05
    assert false <= 16, "at most 5 % of 200, and what chance adds"


def test_two_networks_that_agree_by_chance_take_the_usual_variance() -> None:
    a, b = np.array([[0.9], [0.8]]), np.array([[0.8], [0.7001]])
    assert paired_difference(a, b).p < 0.01
    usual = paired_difference(a, b, usual=0.05**2)
    assert usual.p > 0.1
    assert (usual.low, usual.high) == (paired_difference(a, b).low, paired_difference(a, b).high)
    noisy = np.array([[0.9], [0.5]])
    assert paired_difference(noisy, b, usual=1e-9).p == paired_difference(noisy, b).p, "its own is larger"


def test_different_methods_are_ordered() -> None:
    assert paired_difference(*draws(0, 3, 2000, (1.5, 0.8))).p < 0.01
