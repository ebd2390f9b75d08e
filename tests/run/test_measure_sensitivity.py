"""measure: [sensitivity]: against direct computation, later too, continued after an interruption, and put to use."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from experiment import compress, load_network
from experiment.config import load
from experiment.layers.masks import named_masks
from experiment.main import EXIT_INTERRUPTED, main
from experiment.random_streams import generator
from experiment.report import write_report
from experiment.report.plots import gallery
from experiment.run import measure_sensitivity
from experiment.run.cell.data import Data
from experiment.training.evaluation import evaluate

RESULTS = Path("data/results/small")
METHODS = ["WT", "FT", "SVD"]


def sensitive(small: dict[str, Any], *methods: Any, **experiments: Any) -> dict[str, Any]:
    small["retraining"] = {"numEpochs": 0}
    small["experiments"] |= {"methods": list(methods), "mode": "train", "measure": ["sensitivity"], **experiments}
    return small


def table() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "sensitivity.csv")


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The units that are compressed, as they are."""
    done: list[tuple[str, ...]] = []
    original = measure_sensitivity.OneLayer.compress

    def noted(self: Any, unit: Any, keeps: Any) -> Any:
        done.append(unit.layers)
        return original(self, unit, keeps)

    monkeypatch.setattr(measure_sensitivity.OneLayer, "compress", noted)
    return done


@pytest.mark.usefixtures("no_plots")
def test_the_figures_are_those_of_networks_compressed_by_hand(write: Any, small: dict[str, Any]) -> None:
    path = write(sensitive(small, *METHODS, sensitivityKeeps=[0.5, 0.2]))
    assert main([str(path), "-j", "1", "-q"]) == 0
    p = load(path).parameters
    splits = Data(Path("data/datasets"), "cpu").splits(p, p.training)
    order = torch.randperm(len(splits.valid), generator=generator("sensitivity", 0, "Digits"))
    assert len(order) < measure_sensitivity.SAMPLES, "all validation images"
    net, example = load_network(RESULTS, method="Reference"), splits.valid.first(1)[0]
    total = sum(q.numel() for q in net.parameters())
    found = table().set_index(["label", "layers", "keep"])

    def top1(network: torch.nn.Module) -> float:
        return evaluate(network, splits.valid, device="cpu").values["top1"]

    assert (found["reference"] == top1(net)).all()
    assert set(found["samples"]) == {len(order)}
    layers = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    for label, own in (("WT", layers), ("SVD", layers)):
        assert {layer for key, layer, _ in found.index if key == label} == set(own)
    for keep in (0.5, 0.2):
        for layer in layers:
            size, others = net.get_submodule(layer).weight.numel(), [other for other in layers if other != layer]
            share = (total - size + int(keep * size)) / total
            for label in ("WT", "SVD"):
                made = compress(net, label, keep=share, example=example, ignore=others).network
                row = found.loc[(label, layer, keep)]
                assert row["figure"] == top1(made), (label, layer, keep)
                assert row["loss"] == pytest.approx(top1(net) - top1(made))
        first = layers[0]
        width, inputs = net.get_submodule(first).weight.shape
        gone = (width - int(keep * width)) * (inputs + 1 + net.get_submodule(layers[1]).out_features)
        made = compress(net, "FT", keep=(total - gone) / total, example=example, ignore=[layers[1]]).network
        assert made.get_submodule(first).out_features == int(keep * width)
        assert found.loc[("FT", first, keep)]["figure"] == top1(made)


@pytest.mark.usefixtures("no_plots")
def test_it_is_measured_later_too_and_once(
    write: Any, small: dict[str, Any], compressions: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    small = sensitive(small, "WT", "Uniform", measure=[])
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    stamps = {p: p.stat().st_mtime_ns for p in RESULTS.rglob("result.json")}
    small["experiments"]["measure"] = ["sensitivity"]
    assert main([str(write(small)), "-j", "1"]) == 0
    said = capsys.readouterr().err
    assert "how much Reference net 0 depends on each layer, with 1 method" in said
    assert "not with Uniform: it has no setting ignore" in said
    assert len(compressions) == 3
    assert {p: p.stat().st_mtime_ns for p in RESULTS.rglob("result.json")} == stamps, "in no key"
    assert "it has no setting ignore" in set(table()["note"])
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert len(compressions) == 3
    small["experiments"] |= {"methods": [{"name": "WT", "label": "ours"}, "SVD"], "sensitivityKeeps": [0.5, 0.2]}
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert len(compressions) == 3 + 3 + 3, "a new keep ratio, and a new method"
    assert set(table()["label"]) == {"ours", "SVD"}
    assert set(table()["keep"]) == {0.5, 0.2}
    small["experiments"]["measure"] = []
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    assert not (RESULTS / "sensitivity.csv").exists()


@pytest.mark.usefixtures("no_plots")
def test_an_interrupted_measurement_continues(
    write: Any, small: dict[str, Any], compressions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(sensitive(small, "WT", "SVD")))
    stop = measure_sensitivity.raise_if_stopped

    def interrupted() -> None:
        if len(compressions) == 4:
            raise KeyboardInterrupt
        stop()

    monkeypatch.setattr(measure_sensitivity, "raise_if_stopped", interrupted)
    assert main([path, "-j", "1", "-q"]) == EXIT_INTERRUPTED
    monkeypatch.setattr(measure_sensitivity, "raise_if_stopped", stop)
    assert main([path, "-j", "1", "-q"]) == 0
    assert len(compressions) == 6
    continued = table()
    (found,) = RESULTS.glob("cells/Reference-*/sensitivity.json")
    found.unlink()
    assert main([path, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(continued, table())
    found.write_text(json.dumps({"format": 1}))
    assert main([path, "-j", "1", "-q"]) == 0
    pd.testing.assert_frame_equal(continued, table())


@pytest.mark.usefixtures("no_plots")
def test_a_method_that_fails_does_not_stop_the_others(write: Any, small: dict[str, Any]) -> None:
    block = {"name": "BlockPrune", "settings": {"block_size": [7, 7]}}
    assert main([str(write(sensitive(small, block, "WT"))), "-j", "1", "-q"]) == 0
    notes = table().set_index("label")["note"]
    assert "must divide the weights of all layers" in notes["BlockPrune"]
    assert notes["WT"].isna().all()


@pytest.mark.usefixtures("no_plots")
def test_the_line_of_the_report_keeps_these_layers_whole(
    write: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.report.sensitivity.LOSS", -1.0)  # so that there is always one
    small = sensitive(small, *METHODS)
    small["training"]["numEpochs"] = 1
    monkeypatch.setattr("experiment.report.sensitivity.MOST_PARAMETERS", 0.2)
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    report = write_report(RESULTS, [gallery.sensitivity]).markdown.read_text()
    assert report.count("sensitivity.png") == 1
    lines = re.findall(r"In the settings of (\w+):\n\n```yaml\n(.*)\n```", report)
    assert {label for label, _ in lines} >= {"WT", "SVD"}
    entries = [{"name": label, "settings": yaml.safe_load(line)} for label, line in lines]
    small = sensitive(small, *entries, mode="retrain", spacing=[{"type": "manual", "values": [0.9]}])
    assert main([str(write(small)), "-j", "1", "-q"]) == 0
    net = load_network(RESULTS, method="Reference")
    for entry in entries:
        made, ignored = load_network(RESULTS, method=entry["name"], keep=0.9), entry["settings"]["ignore"]
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.Linear):
                layer = made.get_submodule(name)
                masked = f"{name}.weight" in named_masks(made)
                is_whole = (
                    isinstance(layer, torch.nn.Linear) and not masked and layer.out_features == module.out_features
                )
                assert is_whole == (name in ignored or (entry["name"] == "FT" and name == "fc3")), (entry, name)


def test_methods_are_required(write: Any, small: dict[str, Any], capsys: Any) -> None:
    assert main([str(write(sensitive(small))), "--plan"]) == 2
    assert "experiments.measure: sensitivity compresses layers with methods" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [[], [0], [1], 3, ["a"]])
def test_keep_ratios_lie_between_0_and_1(write: Any, small: dict[str, Any], wrong: object, capsys: Any) -> None:
    small["experiments"]["sensitivityKeeps"] = wrong
    assert main([str(write(small)), "--plan"]) == 2
    assert "experiments.sensitivityKeeps" in capsys.readouterr().err
