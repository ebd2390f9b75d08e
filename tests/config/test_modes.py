"""Which weights are retrained: what modes mean, and what `experiments.rewind` changes."""

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile
from experiment.config.modes import base_mode, epochs_of, is_cascade, retraining, rewinding, takes_tickets

Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


def with_mode(good: str, mode: str, rewind: str | None) -> str:
    return good.replace("mode: retrain", f"mode: {mode}" + (f"\n  rewind: {rewind}" if rewind else ""))


@pytest.mark.parametrize(
    ("mode", "rewind", "meaning"),
    [
        ("train", None, ("train", "none")),
        ("retrain", None, ("retrain", "none")),
        ("retrain-rewind", None, ("retrain", "weights")),
        ("cascade", None, ("cascade", "none")),
        ("cascade-rewind", None, ("cascade", "weights")),
        ("cascade", "weights", ("cascade", "weights")),
        ("cascade-rewind", "none", ("cascade", "none")),
        ("cascade-rewind", "random", ("cascade", "random")),
        ("retrain", "random", ("retrain", "random")),
    ],
)
def test_what_modes_mean(loaded: Loaded, good: str, mode: str, rewind: str | None, meaning: tuple[str, str]) -> None:
    experiments = loaded(with_mode(good, mode, rewind)).parameters.experiments
    assert (base_mode(experiments), rewinding(experiments)) == meaning
    assert is_cascade(experiments) == (meaning[0] == "cascade")
    assert takes_tickets(experiments) == (meaning == ("cascade", "random"))


@pytest.mark.parametrize(("rewind", "start", "epochs"), [("weights", 9, 3), ("none", 9, 3), ("random", 0, 12)])
def test_random_weights_get_the_whole_schedule(loaded: Loaded, good: str, rewind: str, start: int, epochs: int) -> None:
    p = loaded(good + f"  rewind: {rewind}\nretraining: {{startEpoch: 9}}\n").parameters
    assert retraining(p).start_epoch == start
    assert epochs_of(p) == epochs


@pytest.mark.parametrize(
    ("mode", "rewind", "refused"),
    [
        ("retrain", None, False),
        ("retrain", "random", False),
        ("cascade", "none", False),
        ("retrain-rewind", None, True),
        ("retrain", "weights", True),
        ("cascade-rewind", "none", False),
        ("cascade", "random", True),  # its structures come from rewound networks
    ],
)
def test_weights_can_only_go_back_to_an_epoch_of_the_training(
    loaded: Loaded, problems: Problems, good: str, mode: str, rewind: str | None, refused: bool
) -> None:
    text = with_mode(good, mode, rewind)
    loaded(text + "retraining: {startEpoch: 11, numEpochs: 13}\n")
    text += "retraining: {startEpoch: 12, numEpochs: 13}\n"
    if not refused:
        loaded(text)
        return
    (problem,) = problems(text)
    assert "retraining.startEpoch: must be below training.numEpochs (12): weights are rewound to" in problem
