"""`network.weights`: what can be said of it without looking for the file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile

Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


@pytest.fixture
def given(good: str) -> str:
    """A file whose network starts from trained weights and whose networks are three."""
    return good.replace("outputSize: 10", "outputSize: 10, weights: mine.pt") + "  numNets: 3\n"


def test_training_that_starts_from_weights_makes_networks_that_differ(loaded: Loaded, given: str) -> None:
    assert loaded(given).parameters.network.weights == "mine.pt"


def test_several_networks_that_are_all_the_same_are_refused(problems: Problems, given: str) -> None:
    assert problems(given.replace("numEpochs: 12", "numEpochs: 0")) == (
        "e.yaml:12: experiments.numNets: must be 1, for network.weights without training (numEpochs: 0) makes all "
        "networks equal. Got 3.",
    )


@pytest.mark.parametrize("change", [("numNets: 3", "numNets: 1"), (", weights: mine.pt", "")])
def test_one_network_or_random_weights_need_no_training(loaded: Loaded, given: str, change: tuple[str, str]) -> None:
    parameters = loaded(given.replace("numEpochs: 12", "numEpochs: 0").replace(*change)).parameters
    assert parameters.training.num_epochs == 0
    assert (parameters.experiments.num_nets == 1) != (parameters.network.weights is None)


@pytest.mark.parametrize(
    ("value", "message"), [("3", "must be text. Got 3."), ("[a.pt]", "must be text"), ("''", "must not be empty")]
)
def test_the_file_is_a_name(problems: Problems, given: str, value: str, message: str) -> None:
    (problem,) = problems(given.replace("mine.pt", value))
    assert problem.startswith(f"e.yaml:1: network.weights: {message}")
