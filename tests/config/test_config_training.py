"""Penalties as a parameter file says them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile

Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


def test_penalties_in_short_and_in_full(loaded: Loaded, good: str) -> None:
    text = good.replace(
        "  batchSize: 32",
        "  batchSize: 32\n  penalties: [{l1: 1e-4}, {layers: 'fc*', l2: 0.1, how: decoupled},\n"
        "    {layers: [conv1, 'fc?'], l1: 1, l2: 2, how: [coupled, proximal]}]",
    )
    first, second, third = loaded(text).parameters.training.penalties
    assert (first.layers, first.l1, first.l2, first.how) == (["*"], 1e-4, None, None)
    assert (second.layers, second.l1, second.l2, second.how) == (["fc*"], None, 0.1, ["decoupled"])
    assert (third.layers, third.how) == (["conv1", "fc?"], ["coupled", "proximal"])


def test_a_list_in_retraining_replaces_that_of_training(loaded: Loaded, good: str) -> None:
    text = good.replace("  batchSize: 32", "  batchSize: 32\n  penalties: [{l1: 1}, {l2: 2}]")
    p = loaded(text).parameters
    assert p.retraining.penalties == p.training.penalties
    p = loaded(text + "retraining: {penalties: [{l2: 3}]}\n").parameters
    assert [penalty.l2 for penalty in p.retraining.penalties] == [3]
    assert len(p.training.penalties) == 2
    assert loaded(text + "retraining: {penalties: []}\n").parameters.retraining.penalties == []


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ("{layers: fc1}", "penalties[0]: needs l1 or l2, or both. Got a mapping (layers)."),
        ("{l1: -1}", "penalties[0].l1: must be at least 0. Got -1."),
        ("{l1: true}", "penalties[0].l1: must be a number. Got true."),
        ("{l1: 1, layers: []}", "penalties[0].layers: must not be empty."),
        ("{l1: 1, how: soft}", "penalties[0].how[0]: must be one of subgradient, proximal, coupled, decoupled."),
        ("{l1: 1, how: coupled}", "penalties[0]: how: coupled is about l2, which is not given."),
        ("{l1: 1, how: [proximal, subgradient]}", "penalties[0]: how: says twice how l1 acts. Say it once."),
        ("{l1: 1, layer: fc1}", "penalties[0].layer: unknown key. Did you mean 'layers'?"),
    ],
)
def test_what_is_wrong_with_a_penalty_is_told_once(problems: Problems, good: str, penalty: str, message: str) -> None:
    found = problems(good.replace("  batchSize: 32", f"  batchSize: 32\n  penalties: [{penalty}]"))
    assert [f.startswith(f"e.yaml:4: training.{message}") for f in found] == [True], found
