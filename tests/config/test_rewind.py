"""Which weights are retrained: what modes say, what `experiments.rewind` says, and what does not go together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile, base_mode, epochs_of, is_cascade, retraining, rewinding, takes_tickets

Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


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
    text = good.replace("mode: retrain", f"mode: {mode}" + (f"\n  rewind: {rewind}" if rewind else ""))
    experiments = loaded(text).parameters.experiments
    assert (base_mode(experiments), rewinding(experiments)) == meaning
    assert is_cascade(experiments) == (meaning[0] == "cascade")
    assert takes_tickets(experiments) == (meaning == ("cascade", "random"))


@pytest.mark.parametrize(("rewind", "start", "epochs"), [("weights", 9, 3), ("none", 9, 3), ("random", 0, 12)])
def test_random_weights_get_the_whole_schedule(loaded: Loaded, good: str, rewind: str, start: int, epochs: int) -> None:
    p = loaded(good + f"  rewind: {rewind}\nretraining: {{startEpoch: 9}}\n").parameters
    assert retraining(p).start_epoch == start
    assert epochs_of(p) == epochs


def test_variants_can_differ_in_it(loaded: Loaded, good: str) -> None:
    values = ("weights", "random", "none")
    items = "".join(f"  - {{key: [experiments, rewind], value: {value}}}\n" for value in values)
    file = loaded(good + "customizations:\n" + items)
    assert [rewinding(variant.parameters.experiments) for variant in file.variants] == list(values)
    assert [variant.name for variant in file.variants] == [f"experiments.rewind={value}" for value in values]


@pytest.mark.parametrize(
    ("mode", "rewind", "refused"),
    [
        ("retrain", None, False),
        ("retrain", "random", False),
        ("cascade", "none", False),
        ("retrain-rewind", None, True),
        ("retrain", "weights", True),
        ("cascade-rewind", "none", False),
        ("cascade", "random", True),  # whose structures come from rewound networks
    ],
)
def test_weights_can_only_go_back_to_an_epoch_of_the_training(
    loaded: Loaded, problems: Problems, good: str, mode: str, rewind: str | None, refused: bool
) -> None:
    text = good.replace("mode: retrain", f"mode: {mode}" + (f"\n  rewind: {rewind}" if rewind else ""))
    text += "retraining: {startEpoch: 12, numEpochs: 13}\n"
    if not refused:
        loaded(text)
        return
    (problem,) = problems(text)
    assert "retraining.startEpoch: with rewinding the weights go back to the start of this epoch" in problem


def test_what_does_not_go_together(problems: Problems, good: str) -> None:
    assert problems(good + "  rewind: random\nretraining: {numEpochs: 0}\n") == (
        "e.yaml:12: experiments.rewind: random needs retraining, for random weights have learnt nothing, and "
        "retraining.numEpochs is 0.",
    )
    (problem,) = problems(good.replace("mode: retrain", "mode: train\n  rewind: weights"))
    assert problem == "e.yaml:10: experiments.rewind: has no effect in mode train, which compresses nothing. Remove it."
    (problem,) = problems(good + "  rewind: yes\n")
    assert "experiments.rewind: must be one of weights, random, none" in problem
