"""The settings that a report lists: everything that differs from the defaults, and nothing that does not apply."""

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


def test_training_and_how_retraining_differs(synthetic: Any, tmp_path: Path) -> None:
    found = facts(synthetic, tmp_path, {"retraining": None})
    assert found["Training"] == (
        "batchSize=32, numEpochs=4, optimizer=SGD(lr=0.02, momentum=0.9), "
        "lrSchedulers=[MultiStepLR(gamma=0.1, milestones=[3])]"
    )
    assert found["Retraining"] == "1 epoch"
    assert {"L-C", "Method settings", "Network settings", "Search"}.isdisjoint(found)
    own = {"startEpoch": 3, "optimizerKwargs": {"lr": 0.001}, "lrSchedulers": [], "distillation": {"alpha": 1}}
    assert facts(synthetic, tmp_path, {"retraining": own})["Retraining"] == (
        "1 epoch, startEpoch=3, optimizerKwargs={lr: 0.001, momentum: 0.9}, lrSchedulers=[], "
        "distillation={temperature: 4.0, alpha: 1.0}"
    )
    other = {"optimizer": "Adam", "optimizerKwargs": {"lr": 0.001}}  # does not inherit SGD's arguments
    assert facts(synthetic, tmp_path, {"retraining": other})["Retraining"] == "1 epoch, optimizer=Adam(lr=0.001)"
    random = {"mode": "retrain", "rewind": "random", "methods": ["WT"], **SPACING}
    found = facts(synthetic, tmp_path, {"retraining": {"startEpoch": 3}, "experiments": random})
    assert found["Retraining"] == "1 epoch", "random weights start at the start of the schedule"


def test_settings_of_networks_methods_and_searches(synthetic: Any, tmp_path: Path) -> None:
    schemes = [{"name": "FT"}, {"name": "Quantize", "settings": {"dtype": "int8"}}]
    methods = ["WT", {"name": "Prune", "label": "P", "settings": {"density": 0.1, "ignore": ["conv1"]}},
               {"name": "Compose", "settings": {"schemes": schemes}}]  # fmt: skip
    found = facts(synthetic, tmp_path, {
        "network": {"name": "resnet20", "dataset": "CIFAR10", "outputSize": 10, "settings": {"rank": 10}},
        "experiments": {"mode": "retrain", "methods": methods, "search": {}}, "retraining": None,
    })  # fmt: skip
    assert found["Network settings"] == "rank=10"
    assert found["Method settings"] == (
        "Prune(label=P, density=0.1, ignore=[conv1]), Compose(schemes=[FT, Quantize(dtype=int8)])"
    )
    assert found["Search"].endswith("validation accuracy (accuracyLoss=0.005, samples=10, smallest=0.001)")


def test_lc_lists_its_defaults_too(synthetic: Any, tmp_path: Path) -> None:
    experiments = {"mode": "lc", "methods": ["WT"], **SPACING}
    found = facts(synthetic, tmp_path, {"retraining": {}, "experiments": experiments, "lc": {"steps": 6}})
    assert found["L-C"] == "steps=6, muInit=0.001, muMultiplier=1.1, muCap=10000.0, lrMilestones=[]"


def test_settings_that_variants_change_are_named(synthetic: Any, tmp_path: Path) -> None:
    found = facts(synthetic, tmp_path, {"retraining": {"startEpoch": 3}}, ("training", "batchSize"), (3, 2))
    assert found["Training"].endswith("variants change batchSize")
    assert found["Retraining"] == "1 epoch, startEpoch=3, variants change batchSize", "it is taken from training"
