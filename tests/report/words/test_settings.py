"""What a report says was run: every setting that decides its numbers, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment.report import read_source
from experiment.report.document import Items
from experiment.report.words.about import what_was_run

TRAINING = {
    "numEpochs": 4, "batchSize": 32, "optimizer": "SGD", "optimizerKwargs": {"lr": 0.02, "momentum": 0.9},
    "lrSchedulers": [{"type": "MultiStepLR", "stepKwargs": {"milestones": [3]}, "kwargs": {"gamma": 0.1}}],
}  # fmt: skip


def facts(synthetic: Any, folder: Path, parameters: Any, variants: tuple[str, ...] = ("",)) -> dict[str, str]:
    """The lines of "What was run" of one epoch of retraining under these parameters."""
    rows = [row for v in variants for row in synthetic.grid(("WT",), nets=1, keeps=(0.5,), epochs=1, variant=v)]
    source = read_source(synthetic.write_experiment(folder, rows, parameters={"training": TRAINING} | parameters))
    (items,) = what_was_run(source).blocks
    assert isinstance(items, Items)
    return dict(items.items)


def test_settings_that_are_not_set_are_not_told(synthetic: Any, tmp_path: Path) -> None:
    found = facts(synthetic, tmp_path, {"retraining": None})
    assert found["Network"] == "resnet20"
    assert found["Training"] == (
        "4 epochs, batches of 32, SGD(lr=0.02, momentum=0.9), MultiStepLR(milestones=[3], gamma=0.1)"
    )
    assert found["Retraining"] == "1 epoch"
    assert {"Penalties", "Distillation", "Learning and compressing", "Settings of methods", "Search"}.isdisjoint(found)


def test_retraining_tells_what_is_not_as_in_training(synthetic: Any, tmp_path: Path) -> None:
    own = {"startEpoch": 3, "batchSize": 64, "optimizerKwargs": {"lr": 0.001}, "lrSchedulers": []}
    found = facts(synthetic, tmp_path, {"retraining": own})
    assert found["Retraining"] == (
        "1 epoch, batches of 64, SGD(lr=0.001, momentum=0.9), no schedule, from epoch 3 of the schedule on"
    )
    other = {"optimizer": "Adam", "optimizerKwargs": {"lr": 0.001}}  # whose arguments do not go on top of SGD's
    assert facts(synthetic, tmp_path, {"retraining": other})["Retraining"] == "1 epoch, Adam(lr=0.001)"


def test_networks_methods_penalties_and_distillation_tell_their_settings(synthetic: Any, tmp_path: Path) -> None:
    schemes = [{"name": "FT"}, {"name": "Quantize", "settings": {"dtype": "int8"}}]
    methods = ["WT", {"name": "Prune", "label": "P", "settings": {"density": 0.1, "ignore": ["conv1"]}},
               {"name": "Compose", "settings": {"schemes": schemes}}]  # fmt: skip
    penalties = [{"layers": "fc*", "l1": 0.005, "how": "proximal"}, {"l2": 0.001}]
    found = facts(synthetic, tmp_path, {
        "network": {"name": "resnet20", "settings": {"rank": 10}},
        "experiments": {"mode": "retrain", "methods": methods, "search": {}},
        "training": TRAINING | {"penalties": penalties},
        "retraining": {"distillation": {"alpha": 1}, "penalties": []},
    })  # fmt: skip
    assert found["Network"] == "resnet20 (rank=10)"
    assert found["Settings of methods"] == "P: density=0.1, ignore=[conv1]; FT + Quantize(dtype=int8)"
    assert found["Penalties"] == ("l1=0.005 proximal on fc*; l2=0.001 on all layers in training, none in retraining")
    assert found["Distillation"].endswith("temperature=4.0, alpha=1")
    assert "at most 10 networks that loses at most 0.5 points" in found["Search"]


def test_learning_and_compressing_tells_its_defaults_too(synthetic: Any, tmp_path: Path) -> None:
    mode = {"mode": "lc", "methods": ["WT"]}
    assert facts(synthetic, tmp_path, {"experiments": mode})["Learning and compressing"] == (
        "30 compressions: the first direct, the second after five epochs, every other after an epoch; "
        "mu 0.001 multiplied by 1.1 a step, learning rate multiplied by 0.98 a step"
    )
    lc = {"steps": 6, "iterations": 40, "iterationsFirst": 80, "muInit": 1, "muMultiplier": 10, "muCap": 100,
          "lrMilestones": [3]}  # fmt: skip
    assert facts(synthetic, tmp_path, {"experiments": mode, "lc": lc})["Learning and compressing"] == (
        "6 compressions: the first direct, the second after 80 minibatches, every other after 40 minibatches; "
        "mu 1 multiplied by 10 a step up to 100, learning rate multiplied by 0.1 at steps [3]"
    )
    foreign = facts(synthetic, tmp_path, {"experiments": mode, "lc": {"rounds": 3}})
    assert foreign["Learning and compressing"] == "rounds=3"


def test_what_variants_set_is_told_with_a_warning(synthetic: Any, tmp_path: Path) -> None:
    parameters = {"retraining": {"startEpoch": 3, "distillation": {}}}
    swept = facts(synthetic, tmp_path, parameters, ("retraining.distillation=null", "retraining.distillation={}"))
    assert swept["Retraining"] == "1 epoch, from epoch 3 of the schedule on"
    assert swept["Distillation"].endswith(", unless a variant sets it")
    swept = facts(synthetic, tmp_path, parameters, ("retraining.startEpoch=3", "retraining.startEpoch=2"))
    assert swept["Retraining"] == "1 epoch", "the variants say where they start"
    swept = facts(synthetic, tmp_path, parameters, ("retraining.batchSize=3", "retraining.batchSize=2"))
    assert swept["Retraining"].endswith(", unless a variant sets it")
