"""How far long work is: told to whoever listens, by a bar only where somebody watches and only after a while."""

import io
import sys
import time
from typing import Any

import pytest
import torch
from torch import nn

from experiment import compress, progress
from experiment.progress import Bar, ProgressText, bars, showing, working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which silence lasts a moment only; made in the test itself, since pytest changes stderr before."""
    for name, seconds in (("SECONDS_OF_SILENCE", 0.01), ("SECONDS_BETWEEN_DRAWINGS", 0.01), ("SECONDS_TO_HINT", 0.02)):
        monkeypatch.setattr(progress, name, seconds)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def wait_for(screen: Terminal, text: str) -> None:
    until = time.monotonic() + 60
    while text not in screen.getvalue():
        assert time.monotonic() < until, screen.getvalue()
        time.sleep(0.005)


def test_items_are_those_given_whoever_listens() -> None:
    told: list[str] = []

    class Part:
        def __init__(self, *about: Any) -> None:
            told.append(f"{about}")

        def advance(self) -> None:
            told.append("+")

        def close(self) -> None:
            told.append("end")

    assert list(progress.progress("ab", "letters")) == ["a", "b"]
    assert told == []
    with showing(Part):
        assert list(progress.progress("ab", "letters", "a hint")) == ["a", "b"]
        for letter in progress.progress("ab", "cut short"):
            assert letter == "a"
            break
        with pytest.raises(KeyError), working("a step"):
            raise KeyError
    assert told == [
        "('letters', 2, 'a hint')", "+", "+", "end", "('cut short', 2, '')", "end", "('a step', 1, '')", "end"
    ]  # fmt: skip


def test_one_long_step_is_not_silent_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar appears and shows its hint while the first of two steps is still under way."""
    terminal = terminal_of(monkeypatch)
    with showing(bars()):
        for i in progress.progress(range(2), "decomposing", "use another setting"):
            if i == 0:
                wait_for(terminal, "use another setting")
            else:
                wait_for(terminal, "1/2")
        assert terminal.getvalue().split("\r")[-1].strip() == ""
    with showing(bars()), working("thinking"):
        wait_for(terminal, "thinking: 00:0")


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 60)
    with showing(bars()), working("thinking"):
        pass
    assert terminal.getvalue() == ""


def test_nobody_watches_a_log_file_or_what_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_of(monkeypatch)
    assert bars() is Bar
    assert bars(False) is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bars() is None


@pytest.mark.parametrize("method", ["ALDS", "WT", "FT", "KLDS"])
def test_every_analysis_is_told(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The terminal stands for a person; `progress=False` silences it."""
    terminal_of(monkeypatch)
    told: list[str] = []

    def spoken(description: str, total: int, hint: str) -> ProgressText:
        told.append(f"{description} {hint}")
        return ProgressText(told.append, description, total, hint)

    monkeypatch.setattr(progress, "Bar", spoken)
    network, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(4, 8)
    compress(network, method, keep=0.6, example=x, data=x, progress=False)
    assert told == []
    compress(network, method, keep=0.6, example=x, data=x)
    assert any(text.rstrip().endswith(": analysis") for text in told)
    assert any("randomised_above" in text for text in told) == (method == "ALDS")


def test_words_come_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 100.0, []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    part = ProgressText(said.append, "reading", 50, "use a cache")
    for _ in range(24):
        now += 0.5
        part.advance()
    part.close()
    assert said[:2] == ["reading 4/50", "reading 6/50"]
    assert said[-1] == "reading 24/50 (use a cache)"
    assert len(said) == 11
