"""Codebooks against the exact optimum by dynamic programming, and against scikit-learn's k-means."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from experiment.layers.codebooks import fit_codebook
from experiment.random_streams import generator


def draws(kind: str, count: int, seed: int = 0) -> Tensor:
    """Values like those of layers: light and heavy tails, two bumps, ties, and all far from zero."""
    stream = np.random.default_rng(seed)
    x = stream.normal(size=count)
    found = {
        "normal": x,
        "laplace": stream.laplace(size=count),
        "heavy": stream.standard_t(2, size=count),
        "bumps": np.where(stream.random(count) < 0.5, 0.1 * x - 1, x),
        "ties": np.round(3 * x, 1),
        "far": 3 + 0.01 * x,
    }[kind]
    return torch.from_numpy(found.astype(np.float32))


KINDS = ("normal", "laplace", "heavy", "bumps", "ties", "far")


def rounded(values: Tensor, size: int) -> Tensor:
    table, tops = fit_codebook(values, size)
    assert (table.shape, tops.shape, table.dtype) == ((size,), (size - 1,), torch.float32)
    assert (table.diff() >= 0).all()
    return table[torch.bucketize(values, tops)]


def error(values: Tensor, other: Tensor) -> float:
    return float((values.double() - other.double()).square().sum())


def least_error(values: Tensor, size: int) -> float:
    """The smallest sum of squares of `size` intervals of the sorted values: a table over all pairs of cuts."""
    x = np.sort(values.double().numpy())
    x = x - x.mean()
    sums, squares = (np.concatenate([[0], np.cumsum(own)]) for own in (x, x**2))
    number = np.arange(len(x) + 1)[None] - np.arange(len(x) + 1)[:, None]
    cost = squares[None] - squares[:, None] - (sums[None] - sums[:, None]) ** 2 / np.maximum(number, 1)
    cost[number < 0] = np.inf
    best = cost[0]
    for _ in range(size - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_small_tensors_get_the_best_codebook(kind: str, count: int, size: int) -> None:
    for seed in range(3):
        values = draws(kind, count, seed)
        optimum = least_error(values, size)
        slack = 1e-6 * float(values.square().sum()) * torch.finfo(torch.float32).eps  # entries are float32
        assert error(values, rounded(values, size)) == pytest.approx(optimum, rel=5e-3, abs=slack)


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize(("size", "share"), [(2, 1e-4), (4, 1e-3), (16, 5e-3), (256, 0.15)])
def test_larger_ones_are_close_to_it(kind: str, size: int, share: float) -> None:
    values = draws(kind, 1000)
    assert error(values, rounded(values, size)) <= (1 + share) * least_error(values, size)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_no_worse_than_scikit_learn_with_many_starts(size: int) -> None:
    """A vector like a trained layer's: rows of different sizes, some almost zero."""
    stream = generator("test_codebooks")
    values = (torch.randn(60, 50, generator=stream) * torch.rand(60, 1, generator=stream) ** 3).flatten()
    theirs = KMeans(size, n_init=10, random_state=0).fit(values.double().numpy()[:, None]).inertia_
    assert error(values, rounded(values, size)) <= 1.001 * theirs


@pytest.mark.parametrize("kind", ["normal", "heavy", "bumps"])
@pytest.mark.parametrize("size", [2, 4, 16, 256])
def test_every_value_has_its_nearest_entry_and_entries_are_means(kind: str, size: int) -> None:
    """What Lloyd's algorithm ends with, also where there are too many values for the exact search."""
    values = draws(kind, 20_000)
    table, tops = fit_codebook(values, size)
    codes = torch.bucketize(values, tops)
    assert len(codes.unique()) == size
    distance = (values.double()[:, None] - table.double()).abs()
    assert (distance[torch.arange(len(values)), codes] <= distance.min(1).values + 1e-6).all()
    for k in range(size):
        assert float(table[k]) == pytest.approx(float(values[codes == k].double().mean()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [2, 4, 16, 256])
def test_few_values_stay_what_they_are(size: int) -> None:
    for number in (1, 2, size - 1, size):
        chosen = draws("heavy", number, number)
        chosen[0] = torch.nextafter(chosen[-1], torch.tensor(torch.inf))  # neighbours are told apart
        values = chosen[torch.randint(number, (500,), generator=generator("few", number))]
        assert torch.equal(rounded(values, size), values)
    once = rounded(draws("laplace", 5000), size)
    assert torch.equal(rounded(once, size), once)


def test_nothing_but_the_values_matters() -> None:
    values = draws("laplace", 5000)
    table, tops = fit_codebook(values, 16)
    torch.manual_seed(99)
    np.random.seed(99)
    order = torch.randperm(5000)
    for other in (values.clone(), values[order]):
        again = fit_codebook(other, 16)
        assert torch.equal(again[0], table)
        assert torch.equal(again[1], tops)


def test_no_values_one_value_and_large_ones() -> None:
    assert not fit_codebook(torch.zeros(0), 4)[0].any()
    for value in (0.0, -3.5):
        assert torch.equal(rounded(torch.full((9,), value), 4), torch.full((9,), value))
    values = draws("normal", 3000) * 1e37
    assert torch.isfinite(rounded(values, 16)).all()
    mixed = draws("normal", 300) * 10.0 ** torch.arange(-30, 30, 0.2)
    assert error(1e-30 * mixed, 1e-30 * rounded(mixed, 16)) < 1e-3 * error(1e-30 * mixed, torch.zeros(300))
    tiny = draws("normal", 3000) * 1e-30
    assert error(1e30 * tiny, 1e30 * rounded(tiny, 16)) < 0.02 * error(1e30 * tiny, torch.zeros(3000))
