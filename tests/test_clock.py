from __future__ import annotations

import pytest

from experiment import clock as module
from experiment.clock import Clock


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a clock reads: a list of one number."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_part_counts_for_itself_alone(hands: list[float]) -> None:
    clock = Clock()
    hands[0] += 5  # before any part
    with clock.part("outer"):
        hands[0] += 1
        with clock.part("inner"):
            hands[0] += 2
        hands[0] += 4
        with clock.part("inner"):
            hands[0] += 8
    hands[0] += 16
    assert clock.take() == {"outer": 5, "inner": 10}
    assert clock.take() == {}
    assert clock.total == 36


def test_what_makes_items_is_counted_apart_from_what_uses_them(hands: list[float]) -> None:
    def items() -> object:
        for i in range(3):
            hands[0] += 1
            yield i
        hands[0] += 10

    clock = Clock()
    with clock.part("use"):
        for _ in clock.over("make", items()):  # type: ignore[arg-type]
            hands[0] += 2
    assert clock.take() == {"make": 13, "use": 6}


def test_an_error_ends_its_part(hands: list[float]) -> None:
    clock = Clock()

    def fail() -> None:
        hands[0] += 3
        raise ValueError("broken")

    with clock.part("outer"):
        with pytest.raises(ValueError, match="broken"), clock.part("inner"):
            fail()
        hands[0] += 1
    assert clock.take() == {"inner": 3, "outer": 1}


def test_a_part_under_way_is_taken_up_to_now(hands: list[float]) -> None:
    clock = Clock()
    clock.add("earlier", 7)
    with clock.part("work"):
        hands[0] += 1
        assert clock.take() == {"earlier": 7, "work": 1}
        hands[0] += 2
    assert clock.take() == {"work": 2}
