"""What training blocks come to on CPUs and GPUs, and which of that decides keys."""

from typing import Any

import pytest

from experiment.config import Network, Parameters, Training
from experiment.run.grid.hardware import Machine, Precision, resolved_channels_last, resolved_precision
from experiment.run.grid.keys import training_key


def block(**settings: Any) -> Training:
    return Training.model_validate({"batchSize": 8, "numEpochs": 3, "optimizer": "SGD", **settings})


@pytest.mark.parametrize(
    ("settings", "kind", "auto", "precision", "channels_last"),
    [
        ({}, "cpu", "fp32", "fp32", True),
        ({"precision": "bf16"}, "cpu", "fp32", "bf16", True),
        ({}, "cuda", "bf16", "bf16", True),
        ({}, "cuda", "fp16", "fp16", True),
        ({}, "cuda", "fp32", "fp32", False),
        ({"enableAMP": False}, "cuda", "bf16", "fp32", False),
        ({"precision": "fp16"}, "cuda", "bf16", "fp16", True),
        ({"channelsLast": False}, "cpu", "fp32", "fp32", False),
        ({"channelsLast": True, "precision": "fp32"}, "cuda", "bf16", "fp32", True),
    ],
)
def test_what_is_left_open(
    settings: dict[str, Any], kind: str, auto: Precision, precision: str, channels_last: bool
) -> None:
    training, machine = block(**settings), Machine(kind, auto=auto)
    assert resolved_precision(training, machine) == precision
    assert resolved_channels_last(training, machine) == channels_last


def key(**settings: Any) -> dict[str, Any]:
    network = Network.model_validate({"name": "lenet5", "dataset": "Digits", "outputSize": 10})
    return training_key(Parameters.model_construct(network=network, training=block(**settings)), Machine("cpu"))


def test_keys_know_what_it_came_to_and_not_how() -> None:
    assert key() == key(channelsLast=True, precision="fp32")
    assert key() != key(channelsLast=False)
    assert "channels_last" not in key(channelsLast=False)  # as before there was a choice
    assert key() == key(testBatchSize=7)
    assert key() == key(loss="CrossEntropyLoss") != key(loss="NLLLoss")  # the task's own loss need not be named
