"""What training blocks come to on CPUs and GPUs, and which of that decides keys."""

from __future__ import annotations

from typing import Any

import pytest

from experiment.config import Training
from experiment.run.resolved import resolved_channels_last, resolved_precision, training_key


def block(**settings: Any) -> Training:
    return Training.model_validate({"batchSize": 8, "numEpochs": 3, "optimizer": "SGD", **settings})


@pytest.mark.parametrize(
    ("settings", "kind", "precision", "channels_last"),
    [
        ({}, "cpu", "fp32", True),
        ({"precision": "bf16"}, "cpu", "bf16", True),
        ({}, "cuda", "bf16", True),
        ({"enableAMP": False}, "cuda", "fp32", False),
        ({"precision": "fp16"}, "cuda", "fp16", True),
        ({"channelsLast": False}, "cpu", "fp32", False),
        ({"channelsLast": True, "precision": "fp32"}, "cuda", "fp32", True),
    ],
)
def test_what_is_left_open(settings: dict[str, Any], kind: str, precision: str, channels_last: bool) -> None:
    training = block(**settings)
    assert (resolved_precision(training, kind), resolved_channels_last(training, kind)) == (precision, channels_last)


def test_keys_know_what_it_came_to_and_not_how() -> None:
    assert training_key(block(), "cpu") == training_key(block(channelsLast=True, precision="fp32"), "cpu")
    assert training_key(block(), "cpu") != training_key(block(channelsLast=False), "cpu")
    assert "channels_last" not in training_key(block(channelsLast=False), "cpu")  # as before there was a choice
    assert training_key(block(), "cpu") == training_key(block(testBatchSize=7), "cpu")
