"""Variants: one value set each, checked each."""

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile

Loaded = Callable[..., ParameterFile]
Problems = Callable[..., tuple[str, ...]]


def with_customizations(good: str, *items: str) -> str:
    return good + "customizations:\n" + "".join(f"  - {item}\n" for item in items)


def test_each_variant_has_one_value_set(loaded: Loaded, good: str) -> None:
    file = loaded(
        with_customizations(
            good,
            "{key: [retraining, startEpoch], value: 6}",
            "{key: [training, optimizerKwargs, lr], value: 1e-2}",
            "{key: [training, optimizerKwargs], value: {lr: 0.5}}",
            "{key: [experiments, datasetTest], value: FashionMNIST}",
            "{key: [network, settings, dropout], value: 0.5}",
        )
    )
    assert [v.name for v in file.variants] == [
        "retraining.startEpoch=6",
        "training.optimizerKwargs.lr=0.01",
        "training.optimizerKwargs={lr: 0.5}",
        "experiments.datasetTest=FashionMNIST",
        "network.settings.dropout=0.5",
    ]
    first, second, third, fourth, fifth = (v.parameters for v in file.variants)
    assert (first.retraining.start_epoch, first.training) == (6, file.parameters.training)
    assert second.training.optimizer_kwargs == {"lr": 0.01, "momentum": 0.9}
    assert second.retraining.optimizer_kwargs == {"lr": 0.01, "momentum": 0.9}  # retraining follows training
    assert second.retraining.start_epoch == 0  # no cross product
    assert third.training.optimizer_kwargs == {"lr": 0.5}  # set, not merged
    assert [test.name for test in fourth.experiments.dataset_test] == ["FashionMNIST"]
    assert fifth.network.settings == {"dropout": 0.5}
    assert file.parameters.retraining.start_epoch == 0
    assert (file.variants[0].key, file.variants[0].value) == (("retraining", "startEpoch"), 6)


def test_without_customizations_there_is_one_variant(loaded: Loaded, good: str) -> None:
    (variant,) = loaded(good + "customizations: []\n").variants
    assert (variant.name, variant.key, variant.value) == ("", (), None)


def test_a_short_dataset_takes_settings(loaded: Loaded, good: str) -> None:
    file = loaded(with_customizations(good, "{key: [network, dataset, settings, root], value: x}"))
    dataset = file.variants[0].parameters.network.dataset
    assert (dataset.name, dataset.settings) == ("Digits", {"root": "x"})


REFUSED = """
{key: [retraining, startEpch], value: 1} >> .key: retraining.startEpch: unknown key. Did you mean 'startEpoch'?
{key: [startEpoch], value: 1} >> .key: startEpoch: unknown key. It belongs in training.
{key: [training, lrSchedulers, gamma], value: 1} >> .key: training.lrSchedulers: must be a list. Got a mapping (
{key: [training, numEpochs, x], value: 1} >> .key: training.numEpochs: must be a whole number. Got a mapping (x)
{key: [retraining, startEpoch], value: 13} >> .value: is 13, after the last epoch: numEpochs is 12.
{key: [training, batchSize], value: x} >> .value: must be a whole number. Got 'x'.
{key: [training, optimizerKwargs, nesterov], value: no} >> .value: 'no' is ambiguous. Write false
{key: [training], value: {batchSize: 3}} >> .value.numEpochs: is required and missing
{key: [training, numEpochs], value: 0} >> : with training.numEpochs=0: retraining.startEpoch: is 1, after the l
{key: [experiments, numNets], value: 2} >> .value: must be the same for all. Use another file for this.
{key: [experiments, methods], value: [FT]} >> .value: must be the same for all. Use another file for this.
{key: [experiments, mode], value: train} >> .value: must be train in all customizations or in none.
{key: [description], value: x} >> .key: description changes nothing that is computed.
{key: retraining.startEpoch, value: 1} >> .key: must be a list. Got 'retraining.startEpoch'. Write [retraining,
{key: [], value: 1} >> .key: must not be empty.
{key: [1], value: 1} >> .key[0]: must be text. Got 1.
{key: [seed]} >> .value: is required and missing
{value: 1} >> .key: is required and missing
3 >> : must be a mapping
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_what_cannot_be_customized(problems: Problems, good: str, line: str) -> None:
    item, message = line.split(" >> ")
    found = problems(with_customizations(good + "retraining: {startEpoch: 1}\n", item))
    assert found[0].startswith(f"e.yaml:14: customizations[0]{message}")


def test_changing_the_mode_within_retraining_is_fine(loaded: Loaded, good: str) -> None:
    file = loaded(with_customizations(good, "{key: [experiments, mode], value: cascade}"))
    assert file.variants[0].parameters.experiments.mode == "cascade"


def test_the_same_customization_twice(problems: Problems, good: str) -> None:
    item = "{key: [retraining, startEpoch], value: 6}"
    assert problems(with_customizations(good, item, "{key: [seed], value: 1}", item)) == (
        "e.yaml:15: customizations[2]: sets retraining.startEpoch=6 like customizations[0]. Remove one of them.",
    )


@pytest.mark.parametrize("key", ["retraining.startEpoch=1", "retraining={startEpoch: 1}"])
def test_an_override_must_leave_customized_keys_alone(problems: Problems, good: str, key: str) -> None:
    items = [f"{{key: [retraining, startEpoch], value: {i}}}" for i in (2, 4)]
    assert problems(with_customizations(good, *items), key) == (
        f"--set {key.partition('=')[0]}: the file's customizations set this as well (retraining.startEpoch=2 and 1 "
        "more). Leave it out, or --set 'customizations=[]'.",
    )
    text = with_customizations(good, "{key: [training, optimizerKwargs], value: {lr: 1}}")
    (problem,) = problems(text, "training.optimizerKwargs.lr=2")
    assert problem.startswith("--set training.optimizerKwargs.lr: the file's customizations set this as well")


def test_overrides_beside_customized_keys_reach_every_variant(loaded: Loaded, good: str) -> None:
    items = [f"{{key: [retraining, startEpoch], value: {i}}}" for i in (2, 4)]
    file = loaded(with_customizations(good, *items), "training.numEpochs=20")
    assert [v.parameters.retraining.num_epochs for v in file.variants] == [20, 20]
    assert [v.name for v in loaded(with_customizations(good, *items), "customizations=[]").variants] == [""]
