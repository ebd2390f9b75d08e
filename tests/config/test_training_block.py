"""Penalties and distillation in a parameter file."""

from collections.abc import Callable

from experiment.config import ParameterFile

Loaded = Callable[..., ParameterFile]


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


def test_distillation_and_its_customizations(loaded: Loaded, good: str) -> None:
    text = good + (
        "retraining: {distillation: {}}\n"
        "customizations:\n  - {key: [retraining, distillation], value: null}\n"
        "  - {key: [retraining, distillation], value: {alpha: 0.9}}\n"
        "  - {key: [retraining, distillation, temperature], value: 1}\n"
    )
    file = loaded(text)
    assert [variant.name for variant in file.variants] == [
        "retraining.distillation=null", "retraining.distillation={alpha: 0.9}", "retraining.distillation.temperature=1"
    ]  # fmt: skip
    found = [p.retraining.distillation for p in (file.parameters, *(variant.parameters for variant in file.variants))]
    assert [None if f is None else (f.temperature, f.alpha) for f in found] == [
        (4.0, 0.7), None, (4.0, 0.9), (1.0, 0.7)
    ]  # fmt: skip
