"""What is found wrong before the first epoch, with nothing but the untrained network at hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiment.config import load
from experiment.main import main
from experiment.random_streams import generator
from experiment.run.disk.store import Directories
from experiment.run.grid.data_facts import read_data_record
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.run.preflight import Checked, check_before_running


def test_patterns_that_name_nothing(write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    prune = {"name": "Prune", "settings": {"density": 0.1, "ignore": ["head"]}}
    small["experiments"] |= {
        "methods": [
            {"name": "FT", "settings": {"ignore": ["layer*", "fc1"]}},
            {
                "name": "Quantize",
                "settings": {"layers": {"fc*": "int8", "conv1": "float16"}, "rounding": "compensated"},
            },
            {"name": "SVD", "settings": {"layers": ["fc4"]}},
            {"name": "Compose", "settings": {"schemes": [prune, {"name": "Quantize"}]}},
        ]
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    said = [line.partition(": experiments.methods")[2] for line in capsys.readouterr().err.splitlines()]
    end = "The layers are fc1, fc2, fc3."
    assert said == [
        f"[0].settings.ignore: no layer matches 'layer*'. {end}",
        f"[1].settings.layers: no layer matches 'conv1'. {end}",
        f"[2].settings.layers: no layer matches 'fc4'. {end}",
        f"[3].settings.schemes[0].settings.ignore: no layer matches 'head'. {end}",
    ]
    assert not (in_tmp / "data/trained_networks").exists(), "nothing has been trained"


def test_methods_with_a_size_of_their_own_that_do_not_fit(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any
) -> None:
    blocks = {"name": "BlockPrune", "settings": {"density": 0.1, "block_size": [7, 7]}}
    small["experiments"] |= {
        "methods": [
            {"name": "Prune", "settings": {"density": 0.1, "ignore": ["*"]}},
            blocks,
            {"name": "Compose", "settings": {"schemes": [blocks, "Quantize"]}},
            {"name": "FilterPrune", "settings": {"density": 0.1, "layers": {"fc2": {"density": 0.5}}}},
            {"name": "NeuronPrune", "settings": {"density": 0.1, "refit": True}},  # has no data here, will have them
        ]
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    said = [line.partition(": experiments.methods")[2] for line in capsys.readouterr().err.splitlines()]
    divide = "BlockPrune: block_size (7, 7) must divide the weights of all layers. It does not divide those of 'fc1'"
    nothing = (
        "Prune: the network has no convolution, linear layer or other matrix to prune that `ignore` does not exclude."
    )
    assert said[0] == f"[0]: {nothing}"
    assert said[1].startswith(f"[1]: {divide}")
    assert said[2].startswith(f"[2]: {divide}")
    assert said[3].startswith("[3]: FilterPrune")
    assert len(said) == 4
    assert not (in_tmp / "data/trained_networks").exists(), "nothing has been trained"


def test_settings_of_the_network_are_blamed_where_they_stand(write: Any, small: dict[str, Any], capsys: Any) -> None:
    small["network"]["settings"] = {"rank": 0}
    path = write(small)
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "rank: 0" in text)
    assert main([str(path), "-j", "1", "-q"]) == 2
    assert capsys.readouterr().err == f"param/small.yaml:{line}: network.settings.rank: must be at least 1. Got 0.\n"


def test_arguments_that_torch_refuses_are_blamed_where_they_stand(
    write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any
) -> None:
    small["training"] |= {
        "optimizerKwargs": {"lr": 0.1, "momentm": 0.9},
        "lossKwargs": {"smoothing": 0.1},
        "transformsTrain": [{"type": "RandomCrop", "kwargs": {"size": 8, "paddin": 1}}],
    }
    small["retraining"] |= {
        "optimizer": "Adam",
        "optimizerKwargs": {"lr": 0.1, "betas": [0.9, "slow"]},
        "lrSchedulers": [{"type": "MultiStepLR"}, {"type": "StepLR", "kwargs": {"gama": 0.5}}],
    }
    path = write(small)
    assert main([str(path), "-j", "1", "-q"]) == 2
    lines = capsys.readouterr().err.splitlines()
    for key, message in (
        (("training", "optimizerKwargs", "momentm"), "momentm: SGD has no such argument. Did you mean 'momentum'?"),
        (("training", "lossKwargs", "smoothing"), "smoothing: CrossEntropyLoss has no such argument."),
        (("training", "transformsTrain", 0), "paddin: RandomCrop has no such argument. Did you mean 'padding'"),
        (("retraining", "optimizerKwargs"), "Adam refuses {'betas': [0.9, 'slow']"),
        (("retraining", "lrSchedulers", 0), "MultiStepLR refuses {}: "),
        (("retraining", "lrSchedulers", 1, "gama"), "gama: StepLR has no such argument. Did you mean 'gamma'?"),
    ):
        (line,) = (line for line in lines if message in line)
        assert line.startswith(f"{load(path).where(*key)}: {key[0]}.{key[1]}")
    assert len(lines) == 6
    assert not (in_tmp / "data/trained_networks").exists()


OWN = """
import torch
from torch.utils.data import TensorDataset

class Own(TensorDataset):
    classes = ["cat", "dog"]

def load(root, train):
    images = torch.arange(40 * 36).reshape(40, 1, 6, 6).remainder(251).float()
    return Own(images if train else images[:10] + 0.5, torch.arange(40 if train else 10) % 2)

def stack(input_shape, output_size):
    nn = torch.nn
    net = [nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)]
    return nn.Sequential(*net)
"""


@pytest.fixture
def own(small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment on bytes as floats, left as they are."""
    (in_tmp / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(in_tmp)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    small["network"] = {"name": "own_data:stack", "dataset": "own_data:load", "outputSize": 2}
    small["training"] |= {"transformsTrain": [], "transformsFinal": [{"type": "ToTensor"}], "numEpochs": 1}
    small["experiments"] |= {"methods": ["WT"], "spacing": [{"type": "manual", "values": [0.5]}]}
    return small


def look(path: Path) -> Checked:
    machine = Machine("cpu")
    places = Directories(Path("data/results"), Path("data/trained_networks"), Path("data/datasets"))
    return check_before_running(plan_experiment(load(path), machine), places, machine)


def test_what_looks_wrong_with_data_is_told_and_kept(
    write: Any, own: dict[str, Any], in_tmp: Path, capsys: Any, no_plots: None
) -> None:
    assert main([str(write(own)), "-j", "1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    scale = "inputs have mean 123, standard deviation 72.4 after transforms: expected about 0 and 1."
    assert len(said) == 1
    assert said[0].startswith(f"warning: own_data:load: {scale} Add Normalize")
    folder = in_tmp / "data/results/small"
    (facts,) = read_data_record(folder).data
    assert (facts.training, facts.validation, facts.test) == (36, 4, 10)
    assert (facts.num_classes, facts.classes) == (2, ["cat", "dog"])
    assert said == [f"warning: own_data:load: {text}" for text in facts.warnings]
    stamps = read_data_record(folder).stamps
    assert len(stamps) == 2
    assert main([str(write(own)), "-j", "1", "-q"]) == 0, "nothing is left to do"
    assert read_data_record(folder).data == [facts]
    assert read_data_record(folder).stamps == stamps
    (folder / "data.json").write_text(json.dumps({"format": 1, "stamps": stamps, "data": [{"dataset": 3}]}))
    assert read_data_record(folder).data == []


@pytest.mark.parametrize("block", ["training", "retraining"])
def test_batches_that_batch_norm_cannot_train_on(write: Any, own: dict[str, Any], block: str) -> None:
    own["training"] |= {"batchSize": 2}
    own["retraining"] |= {"batchSize": 2}
    assert look(write(own)).problems == []
    own[block]["batchSize"] = 1
    path = write(own)
    line = max(i for i, text in enumerate(path.read_text().splitlines(), 1) if "batchSize: 1" in text)
    assert look(path).problems == [
        f"param/small.yaml:{line}: {block}.batchSize: '2' is a BatchNorm with one value per channel and input: it "
        "cannot train on batches of 1. Use a batchSize of at least 2."
    ]
    own["network"]["name"] = "lenet300_100"
    assert look(write(own)).problems == [], "has no BatchNorm"


def test_images_of_several_sizes_are_told_before_training(write: Any, small: dict[str, Any], in_tmp: Path) -> None:
    for i in range(24):
        folder = in_tmp / "data/datasets/mine" / ("train" if i < 16 else "test") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = torch.randint(0, 256, (8, 8 + i % 2, 3), dtype=torch.uint8, generator=generator(i))
        Image.fromarray(values.numpy()).save(folder / f"{i}.png")
    small["network"] |= {"dataset": {"name": "ImageFolder", "settings": {"root": "mine"}}, "outputSize": 2}
    small["training"] |= {"transformsTrain": [], "transformsFinal": [{"type": "ToTensor"}]}
    (problem,) = look(write(small)).problems
    assert ": network.dataset: dataset ImageFolder: images of different shapes after the transforms: " in problem
    assert not (in_tmp / "data/trained_networks").exists()
