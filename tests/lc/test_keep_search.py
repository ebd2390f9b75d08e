"""The smallest keep ratio within a loss of accuracy: against functions whose level set is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiment import LC
from experiment.errors import ConfigError, InfeasibleBudget
from experiment.lc.keep_search import KeepSearchResult, search_keep


@pytest.mark.parametrize("edge", [0.0013, 0.01, 0.083, 0.4, 0.97])
def test_it_finds_the_edge_of_the_level_set(edge: float) -> None:
    calls = []

    def top1(keep: float) -> float:
        calls.append(keep)
        return 0.95 - 0.5 * max(0.0, math.log(edge / keep))

    found = search_keep(top1, reference=0.955, accuracy_loss=0.005)
    assert found.keep is not None
    assert edge <= found.keep <= 1.02 * edge
    assert len(calls) == len(found.samples) <= 10
    assert search_keep(top1, reference=0.955, accuracy_loss=0.005) == found


def test_ten_samples_are_the_most_and_fewer_will_do() -> None:
    """Half, a quarter and an eighth of the way from 1 to 0.001, in logarithms: the last of them keeps 0.42."""
    found = search_keep(lambda keep: keep, reference=0.5, accuracy_loss=0.1, samples=4)
    assert [sample.keep for sample in found.samples] == pytest.approx(
        [0.001**power for power in (1, 1 / 2, 1 / 4, 1 / 8)]
    )
    assert [sample.within for sample in found.samples] == [False, False, False, True]
    assert found.keep == found.samples[-1].keep
    assert len(search_keep(lambda keep: keep, reference=0.5, precision=0.5).samples) < 10


def test_the_smallest_is_tried_first() -> None:
    found = search_keep(lambda keep: 0.9, reference=0.9, smallest=0.01)
    assert [sample.keep for sample in found.samples] == [pytest.approx(0.01)]
    assert found.keep == pytest.approx(0.01)


def test_nothing_is_within() -> None:
    found = search_keep(lambda keep: 0.1, reference=0.9)
    assert found.keep is None
    assert len(found.samples) == 10


def test_what_cannot_be_made_is_too_small() -> None:
    def top1(keep: float) -> float:
        if keep < 0.2:
            raise InfeasibleBudget(limit=1, smallest=2, original=10, quantity="parameters")
        return 0.9

    found = search_keep(top1, reference=0.9)
    assert 0.2 <= (found.keep or 0.0) <= 0.2 * 1.02
    assert found.samples[0].top1 is None


def test_with_the_optimizer(network: nn.Sequential, make_pairs: Any) -> None:
    train, valid = make_pairs(70), make_pairs(40, "valid")

    def search() -> KeepSearchResult:
        def top1(keep: float) -> float:
            lc = LC(network, "WT", keep=keep, train=train, valid=valid, steps=3, iterations=5, iterations_first=10)
            lc.run()
            return lc.top1

        return search_keep(top1, reference=1.0, accuracy_loss=0.1, samples=4, smallest=0.3)

    found = search()
    assert found.keep is not None
    assert found == search()


@pytest.mark.parametrize("wrong", [{"accuracy_loss": -0.1}, {"samples": 0}, {"smallest": 0.0}, {"precision": 0.0}])
def test_wrong_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        search_keep(lambda keep: keep, reference=1.0, **wrong)


@pytest.mark.parametrize("reference", [99.2, -0.1, float("nan")])
def test_a_reference_is_a_fraction(reference: float) -> None:
    with pytest.raises(ConfigError, match="reference must be an accuracy as a fraction"):
        search_keep(lambda keep: keep, reference=reference)


@pytest.mark.parametrize("kind", [np.float64, lambda value: torch.tensor(value, dtype=torch.float64)])
def test_accuracies_of_torch_and_numpy_are_taken(kind: Any) -> None:
    plain, other = (
        search_keep(lambda keep, of=of: of(0.75 + keep / 4), reference=1.0, accuracy_loss=0.125) for of in (float, kind)
    )
    assert plain == other


@pytest.mark.parametrize("told", [99.0, None])
def test_accuracies_are_fractions(told: Any) -> None:
    with pytest.raises(ConfigError, match="top1 must return an accuracy as a fraction"):
        search_keep(lambda keep: told, reference=0.99)
