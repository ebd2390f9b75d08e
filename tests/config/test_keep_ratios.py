"""Grids of keep ratios against numpy and hand-worked values."""

from itertools import pairwise

import numpy as np
import pytest

from experiment.config import Experiments, keep_steps
from experiment.config.keep_ratios import chunks, harmonic, interval


@pytest.mark.parametrize(
    ("num", "largest", "smallest"), [(20, 0.97, 0.2), (6, 0.8, 0.05), (2, 0.99, 0.855), (58, 0.85, 0.02)]
)
def test_geometric_and_linear_are_numpys(num: int, largest: float, smallest: float) -> None:
    assert interval("geometric", num, largest, smallest) == pytest.approx(
        np.geomspace(largest, smallest, num), rel=1e-9
    )
    assert interval("linear", num, largest, smallest) == pytest.approx(np.linspace(largest, smallest, num), rel=1e-9)


def test_cubic_by_hand() -> None:
    assert interval("cubic", 3, 0.9, 0.1) == pytest.approx([0.9, 0.1 + 0.8 / 8, 0.1])


def test_harmonic2_by_hand() -> None:
    # a = ln(0.8/0.2)/ln 4 = 1, so r_i = 0.8/(i + 1)
    assert interval("harmonic2", 4, 0.8, 0.2) == pytest.approx([0.8, 0.4, 0.8 / 3, 0.2])


def test_harmonic_by_hand() -> None:
    # a = ln 2 / ln 2 = 1: 1/2, 1/3, ..., and 1/0.1 = 10 of them
    assert harmonic(1, 0.1) == pytest.approx([1 / (i + 1) for i in range(1, 11)])


def test_harmonic_with_a_fraction_of_a_step() -> None:
    a = np.log(2) / np.log(1.8)
    expected = (np.arange(1, int(0.05 ** (-1 / a)) + 1) + 1.0) ** -a
    assert harmonic(0.8, 0.05) == pytest.approx(expected, rel=1e-9)


def test_harmonic_reaches_a_half_after_so_many_steps() -> None:
    assert harmonic(5, 0.1)[4] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["geometric", "linear", "cubic", "harmonic2"])
def test_one_ratio_is_the_largest(kind: str) -> None:
    assert interval(kind, 1, 0.7, 0.1) == [0.7]


@pytest.mark.parametrize("kind", ["geometric", "linear", "cubic", "harmonic2"])
def test_ends_are_met_exactly_and_ratios_fall(kind: str) -> None:
    ratios = interval(kind, 17, 0.93, 0.07)
    assert (ratios[0], ratios[-1]) == (0.93, 0.07)
    assert all(a > b for a, b in pairwise(ratios))


@pytest.mark.parametrize(("total", "num"), [(69, 23), (60, 20), (66, 22), (7, 3), (8, 3), (5, 5), (4, 1)])
def test_chunks_are_numpys_array_split(total: int, num: int) -> None:
    values = [float(i) for i in range(total)]
    assert chunks(values, num) == [part.tolist() for part in np.array_split(np.array(values), num)]


def experiments(retrain_iterations: int, values: list[float]) -> Experiments:
    spacing = [{"type": "manual", "values": values}]
    return Experiments.model_validate(
        {"methods": ["WT"], "mode": "cascade", "spacing": spacing, "retrainIterations": retrain_iterations}
    )


def test_steps_retrain_the_last_of_each_chunk() -> None:
    steps = keep_steps(experiments(3, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]))
    assert [(s.between, s.keep) for s in steps] == [((0.9, 0.8), 0.7), ((0.6,), 0.5), ((0.4,), 0.3)]


@pytest.mark.parametrize("every", [-1, 0])
def test_steps_retrain_at_every_ratio(every: int) -> None:
    steps = keep_steps(experiments(every, [0.9, 0.5]))
    assert [(s.between, s.keep) for s in steps] == [((), 0.9), ((), 0.5)]


def test_blocks_follow_one_another() -> None:
    spacing = [
        {"type": "geometric", "numIntervals": 2, "maxVal": 0.99, "minVal": 0.855},
        {"type": "linear", "numIntervals": 4, "maxVal": 0.132, "minVal": 0.02},
    ]
    settings = Experiments.model_validate({"mode": "cascade", "spacing": spacing, "retrainIterations": 2})
    everything = [*np.geomspace(0.99, 0.855, 2), *np.linspace(0.132, 0.02, 4)]
    steps = keep_steps(settings)
    assert [s.keep for s in steps] == pytest.approx(everything[2::3], rel=1e-9)
    assert [r for s in steps for r in (*s.between, s.keep)] == pytest.approx(everything, rel=1e-9)


def test_training_only_has_no_steps() -> None:
    assert keep_steps(Experiments.model_validate({"mode": "train"})) == ()
