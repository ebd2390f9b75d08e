"""The settings that a report lists: every one that determines its numbers, and nothing that does not apply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment.report import read_source
from experiment.report.document import Items
from experiment.report.words.about import what_was_run

TRAINING = {
    "numEpochs": 4, "batchSize": 32, "optimizer": "SGD", "optimizerKwargs": {"lr": 0.02, "momentum": 0.9},
    "lrSchedulers": [{"type": "MultiStepLR", "stepKwargs": {"milestones": [3]}, "kwargs": {"gamma": 0.1}}],
}  # fmt: skip
SPACING = {"spacing": [{"type": "manual", "values": [0.5]}]}


def facts(
    synthetic: Any, folder: Path, parameters: Any, key: Sequence[str] = (), values: Sequence[Any] = ()
) -> dict[str, str]:
    """The lines of "What was run" after one epoch of retraining, with these parameters and variants."""
    variants = [f"{'.'.join(key)}={place}" for place, _ in enumerate(values)] or [""]
    rows = [row for v in variants for row in synthetic.grid(("WT",), nets=1, keeps=(0.5,), epochs=1, variant=v)]
    parameters = {"training": TRAINING, "customizations": [{"key": [*key], "value": v} for v in values]} | parameters
    source = read_source(synthetic.write_experiment(folder, rows, parameters=parameters))
    (items,) = what_was_run(source).blocks
    assert isinstance(items, Items)
    return dict(items.items)


def test_settings_that_are_not_set_are_not_listed(synthetic: Any, tmp_path: Path) -> None:
    found = facts(synthetic, tmp_path, {"retraining": None})
    assert found["Network"] == "resnet20"
    assert found["Training"] == (
        "4 epochs, batches of 32, SGD(lr=0.02, momentum=0.9), MultiStepLR(milestones=[3], gamma=0.1)"
    )
    assert found["Retraining"] == "1 epoch"
    assert {"Penalties", "Distillation", "L-C", "Method settings", "Search"}.isdisjoint(found)


def test_retraining_lists_how_it_differs_from_training(synthetic: Any, tmp_path: Path) -> None:
    own = {"startEpoch": 3, "batchSize": 64, "optimizerKwargs": {"lr": 0.001}, "lrSchedulers": []}
    assert facts(synthetic, tmp_path, {"retraining": own})["Retraining"] == (
        "1 epoch, batches of 64, SGD(lr=0.001, momentum=0.9), no schedule, starting at epoch 3 of the schedule"
    )
    other = {"optimizer": "Adam", "optimizerKwargs": {"lr": 0.001}}  # does not inherit SGD's arguments
    assert facts(synthetic, tmp_path, {"retraining": other})["Retraining"] == "1 epoch, Adam(lr=0.001)"
    random = {"mode": "retrain", "rewind": "random", "methods": ["WT"], **SPACING}
    found = facts(synthetic, tmp_path, {"retraining": {"startEpoch": 3}, "experiments": random})
    assert found["Retraining"] == "1 epoch", "random weights start at the start of the schedule"


def test_settings_of_networks_methods_penalties_and_distillation(synthetic: Any, tmp_path: Path) -> None:
    schemes = [{"name": "FT"}, {"name": "Quantize", "settings": {"dtype": "int8"}}]
    methods = ["WT", {"name": "Prune", "label": "P", "settings": {"density": 0.1, "ignore": ["conv1"]}},
               {"name": "Compose", "settings": {"schemes": schemes}}]  # fmt: skip
    penalties = [{"layers": "fc*", "l1": 0.005, "how": "proximal"}, {"l2": 0.001}]
    found = facts(synthetic, tmp_path, {
        "network": {"name": "resnet20", "dataset": "CIFAR10", "outputSize": 10, "settings": {"rank": 10}},
        "experiments": {"mode": "retrain", "methods": methods, "search": {}},
        "training": TRAINING | {"penalties": penalties},
        "retraining": {"distillation": {"alpha": 1}, "penalties": []},
    })  # fmt: skip
    assert found["Network"] == "resnet20 (rank=10)"
    assert found["Method settings"] == "P: density=0.1, ignore=[conv1]; FT + Quantize(dtype=int8)"
    assert found["Penalties"] == "l1=0.005 proximal on fc*; l2=0.001 on all layers in training, none in retraining"
    assert found["Distillation"].endswith("temperature=4.0, alpha=1.0")
    assert "at most 10 networks that loses at most 0.5 points" in found["Search"]


def test_the_schedule_of_lc_with_its_defaults(synthetic: Any, tmp_path: Path) -> None:
    experiments = {"mode": "lc", "methods": ["WT"], **SPACING}
    assert facts(synthetic, tmp_path, {"retraining": {}, "experiments": experiments})["L-C"] == (
        "30 compression steps: the first direct, the second after five epochs of learning, each later one after one "
        "epoch; mu starts at 0.001 and grows by a factor of 1.1 per step; learning rate multiplied by 0.98 per step"
    )
    lc = {"steps": 6, "iterations": 40, "iterationsFirst": 80, "muInit": 1, "muMultiplier": 10, "muCap": 100,
          "lrMilestones": [3]}  # fmt: skip
    assert facts(synthetic, tmp_path, {"retraining": {}, "experiments": experiments, "lc": lc})["L-C"] == (
        "6 compression steps: the first direct, the second after 80 minibatches of learning, each later one after 40 "
        "minibatches; mu starts at 1 and grows by a factor of 10 per step, up to 100; learning rate multiplied by 0.1 "
        "at steps [3]"
    )


def test_settings_that_variants_change_are_marked(synthetic: Any, tmp_path: Path) -> None:
    parameters = {"retraining": {"startEpoch": 3, "distillation": {}}}

    def swept(block: str, key: str, *values: Any) -> dict[str, str]:
        return facts(synthetic, tmp_path, parameters, (block, key), values)

    found = swept("retraining", "distillation", None, {})
    assert found["Retraining"] == "1 epoch, starting at epoch 3 of the schedule"
    assert found["Distillation"].endswith(", unless a variant changes it")
    assert swept("retraining", "startEpoch", 3, 2)["Retraining"] == "1 epoch", "the variants say where they start"
    assert swept("retraining", "batchSize", 3, 2)["Retraining"].endswith(", unless a variant changes it")
    found = swept("training", "batchSize", 3, 2)
    assert found["Training"].endswith(", unless a variant changes it")
    assert found["Retraining"].endswith(", unless a variant changes it"), "retraining takes it from training"
