"""Penalties and distillation as a parameter file says them."""

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


def test_distillation(loaded: Loaded, good: str) -> None:
    taught = loaded(good + "retraining: {distillation: {}}\n").parameters.retraining.distillation
    assert taught is not None
    assert (taught.temperature, taught.alpha) == (4.0, 0.7)
    file = loaded(good + "retraining: {distillation: {alpha: 0.5}}\n", "retraining.distillation.temperature=2")
    taught = file.parameters.retraining.distillation
    assert taught is not None
    assert (taught.temperature, taught.alpha) == (2.0, 0.5)


def test_customizations_over_distillation(loaded: Loaded, good: str) -> None:
    text = good + (
        "customizations:\n  - {key: [retraining, distillation], value: null}\n"
        "  - {key: [retraining, distillation], value: {alpha: 0.9}}\n"
        "  - {key: [retraining, distillation, temperature], value: 1}\n"
    )
    variants = loaded(text).variants
    assert [variant.name for variant in variants] == [
        "retraining.distillation=null", "retraining.distillation={alpha: 0.9}", "retraining.distillation.temperature=1"
    ]  # fmt: skip
    found = [variant.parameters.retraining.distillation for variant in variants]
    assert [None if f is None else (f.temperature, f.alpha) for f in found] == [None, (4.0, 0.9), (1.0, 0.7)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.5", "alpha: 1.5", "12: retraining.distillation.alpha: must be at most 1. Got 1.5."),
        ("alpha: 0.5", "temperature: 0", "12: retraining.distillation.temperature: must be greater than 0. Got 0."),
        ("alpha: 0.5", "T: 3", "12: retraining.distillation.T: unknown key. Known here: temperature, alpha."),
        ("mode: retrain", "mode: train", "12: retraining.distillation: has no effect in mode train"),
        (
            "batchSize: 32",
            "batchSize: 32\n  distillation: {alpha: 0.5}",
            "4: training.distillation: unknown key. It belongs in retraining.",
        ),
    ],
)
def test_what_is_wrong_with_distillation(problems: Problems, good: str, old: str, new: str, message: str) -> None:
    text = (good + "retraining: {distillation: {alpha: 0.5}}\n").replace(old, new, 1)
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(f"e.yaml:{message}")


@pytest.mark.parametrize(
    ("text", "key", "got"),
    [
        ("retraining: {optimizerKwargs: {lr: '1e-3'}}", "retraining.optimizerKwargs.lr", "1e-3"),
        (
            "retraining: {optimizer: Adam, optimizerKwargs: {betas: [0.9, '.99']}}",
            "retraining.optimizerKwargs.betas[1]",
            ".99",
        ),
        ("retraining: {lossKwargs: {label_smoothing: '0'}}", "retraining.lossKwargs.label_smoothing", "0"),
        (
            "retraining: {lrSchedulers: [{type: StepLR, kwargs: {gamma: '.1'}, stepKwargs: {step_size: 2}}]}",
            "retraining.lrSchedulers[0].kwargs.gamma",
            ".1",
        ),
        (
            "retraining: {transformsTrain: [{type: RandomCrop, kwargs: {size: [28, '28']}}]}",
            "retraining.transformsTrain[0].kwargs.size[1]",
            "28",
        ),
        ("customizations: [{key: [training, optimizerKwargs, lr], value: '1e-3'}]", "customizations[0].value", "1e-3"),
    ],
)
def test_a_number_given_as_text_is_refused_at_its_own_key(
    problems: Problems, good: str, text: str, key: str, got: str
) -> None:
    line = good.count("\n") + 1
    assert problems(f"{good}{text}\n") == (f"e.yaml:{line}: {key}: must be a number without quotes. Got '{got}'.",)


def test_numbers_given_as_text_are_refused_in_includes_and_on_the_command_line(
    problems: Problems, write: Callable[..., None], good: str
) -> None:
    said = "must be a number without quotes. Got '1e-3'."
    key = "training.optimizerKwargs.lr"
    assert problems(good, f"{key}='1e-3'") == (f"--set {key}: {said}",)
    own = "{lr: 0.1, momentum: 0.9}"
    several = good.replace(own, "\n    lr: '1e-3'\n    momentum: '1e-3'")
    assert problems(several) == tuple(
        f"e.yaml:{line}: training.optimizerKwargs.{name}: {said}" for line, name in ((7, "lr"), (8, "momentum"))
    ), "not once more for retraining, which inherits them"
    write({"base.yaml": good.replace(own, "{lr: '1e-3'}")})
    assert problems("file: base.yaml\nseed: 1\n") == (f"base.yaml:6: {key}: {said}",)
