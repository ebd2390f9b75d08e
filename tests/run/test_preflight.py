"""What is found wrong before the first epoch, with nothing but the untrained network at hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiment import load_results
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
    few = "with 10 test inputs and one network, the 95 % interval of a top-1 of 90 % is ± 18.6 points: smaller "
    assert len(said) == 2
    assert said[0].startswith(f"warning: own_data:load: {scale} Add Normalize")
    assert said[1].startswith(f"warning: own_data:load: {few}differences may be chance")
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
    own["experiments"]["numNets"] = 2
    assert not any("interval" in text for text in look(write(own)).data[0].warnings), "networks differ, too"
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


OWN_TASKS = """
import torch
from experiment import Metric, Task

def hits(o, y):
    return torch.stack([(o.argmax(1) == y).sum(), torch.tensor(len(y))]).double()

def ratio(sums):
    return float(sums[0] / sums[1])

def fail(where, y):
    raise ValueError("boom")

def own(update=hits, compute=ratio, *, name="m", target=lambda where, y: torch.as_tensor(y), **more):
    return Task("own", (Metric(name, "my metric", update, compute, **more),), ("CrossEntropyLoss",), target)

def maps(root, train):
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    masks = torch.randint(0, 3, (40, 16, 16))
    masks[:, 0] = 255
    return torch.utils.data.TensorDataset(images, masks)

GOOD = own()
COLUMN, HISTORY, MADE = own(name="parameters"), own(name="seconds"), own(name="valid_loss")
PER_SAMPLE = own(lambda o, y: (o.argmax(1) == y).double())
NUMBER = own(lambda o, y: 0.5)
NOT_JOINED = own(joined=True)
VECTOR = own(compute=lambda sums: sums)
DIVIDES = own(lambda o, y: 0 * hits(o, y), lambda sums: sums[0].item() / sums[1].item())
PERCENT = own(compute=lambda sums: 90.0)
RAISES = own(lambda o, y: o[y.long().max() + 100])
TARGET_RAISES, TARGET_NONE = own(target=fail), own(target=lambda where, y: None)
BAD_TOP1 = own(compute=lambda sums: 90.0, name="top1", unit="value")
LATE = own(compute=lambda sums: 90.0 if sums[1] > 100 else 0.5, name="late")
NO_TASK = {}
"""


@pytest.fixture
def own_task(small: dict[str, Any], in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parameters of an experiment with a task of `OWN_TASKS`."""
    (in_tmp / "own_tasks.py").write_text(OWN_TASKS)
    monkeypatch.syspath_prepend(in_tmp)
    monkeypatch.delitem(sys.modules, "own_tasks", raising=False)

    def with_task(name: str) -> dict[str, Any]:
        small["network"]["task"] = f"own_tasks:{name}"
        return small

    return with_task


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GOOD", None),
        ("COLUMN", "task: metric parameters: results have another column of this name"),
        ("HISTORY", "task: metric seconds: results have another column of this name"),
        ("MADE", "task: metric valid_loss: results have another column of this name"),
        ("PER_SAMPLE", "task: task own: metric m: update must return sums (k,)"),
        ("NUMBER", "task: task own: metric m: update must return sums (k,)"),
        ("NOT_JOINED", "task: task own: metric m: update must return rows (n, k), since joined=True"),
        ("VECTOR", "task: task own: metric m: compute must return a number"),
        ("DIVIDES", "task: task own: metric m: compute raised ZeroDivisionError: float division by zero ("),
        ("PERCENT", "task: task own: metric m: its unit is fraction, so that figures lie in [0, 1]"),
        ("RAISES", "task: task own: metric m: cannot score outputs of shape (2, 10)"),
        ("TARGET_RAISES", "dataset: dataset Digits: sample 0: the task's function `target` raised ValueError: boom ("),
        ("TARGET_NONE", "dataset: dataset Digits: sample 0: the task's function `target` must return a tensor. Got N"),
        ("NO_TASK", "task: task 'own_tasks:NO_TASK': expected a Task"),
    ],
)
def test_faults_of_own_tasks_are_told_before_training(write: Any, own_task: Any, name: str, told: str | None) -> None:
    path = write(own_task(name))
    problems = look(path).problems
    assert len(problems) == (told is not None)
    assert all(f"network.{told}" in problem and problem.startswith("param/small.yaml:") for problem in problems)


def test_a_result_that_cannot_be_read_again_is_a_failure(
    write: Any, own_task: Any, no_plots: None, capsys: Any
) -> None:
    """Shares of right answers lie in [0, 1], whatever a task says: such a cell is not computed again and again."""
    assert main([str(write(own_task("BAD_TOP1"))), "-j", "1"]) == 1
    said = capsys.readouterr()
    assert "failed: Reference net 0 keep 1: the result is not valid: top1: " in said.out
    assert "damaged" not in said.err


def test_failed_cells_have_the_metrics_of_their_task(write: Any, own_task: Any, in_tmp: Path, no_plots: None) -> None:
    parameters = own_task("LATE")
    assert main([str(write(parameters)), "-j", "1", "-q"]) == 1
    rows = load_results(in_tmp / "data/results/small")
    assert set(rows["status"]) == {"failed"}
    assert set(rows["primary"]) == {"late"}
    header = (in_tmp / "data/results/small/results.csv").read_text().partition("\n")[0].split(",")
    assert "late" in header
    assert "top1" not in header


def test_arguments_of_a_loss_are_blamed_for_what_they_break(write: Any, own_task: Any) -> None:
    parameters = own_task("GOOD")
    parameters["network"] = {"name": "unet", "settings": {"width": 4}, "dataset": "own_tasks:maps", "outputSize": 3}
    parameters["network"]["task"] = "segmentation"
    parameters["training"] |= {"transformsTrain": [], "transformsFinal": [{"type": "ToTensor"}]}
    assert look(write(parameters)).problems == []
    parameters["training"]["lossKwargs"] = {"ignore_index": 0}
    (problem,) = look(write(parameters)).problems
    assert "training.lossKwargs: CrossEntropyLossWithAuxiliary with {'ignore_index': 0} cannot score outputs" in problem
    assert ".." not in problem


def test_methods_that_need_classes(write: Any, small: dict[str, Any]) -> None:
    small["network"] |= {"dataset": "Diabetes", "outputSize": 1}
    small["training"] |= {"transformsTrain": [], "transformsFinal": [{"type": "ToTensor"}]}
    small["experiments"]["methods"] = ["WT", "SNIP"]
    (problem,) = look(write(small)).problems
    assert problem.endswith("experiments.methods[1]: SNIP needs classes; the task is regression.")


def test_a_task_that_is_not_there_is_told_once(write: Any, small: dict[str, Any]) -> None:
    small["network"]["task"] = "XX"
    (problem,) = look(write(small)).problems
    assert problem.endswith("network.task: unknown task 'XX'.")


def test_every_trial_is_checked(write: Any, small: dict[str, Any], in_tmp: Path, capsys: Any) -> None:
    """And the block itself is not: its values that are tuned are never used."""
    small["retraining"] |= {"optimizerKwargs": {"lr": -5}}
    small["retraining"]["tune"] = {
        "optimizerKwargs.lr": [0.1, -1],
        "optimizerKwargs.momentum": [0.9, 0.5],
        "penalties": [[], [{"layers": "conv*", "l1": 1}]],
    }
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, "with both values of momentum"
    assert all("retraining.tune.optimizerKwargs: SGD refuses {'lr': -1, 'momentum': 0." in line for line in said)
    small["retraining"]["tune"]["optimizerKwargs.lr"] = [0.1, 0.2]
    assert main([str(write(small)), "-j", "1", "-q"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "retraining.tune.penalties[0].layers: no convolution or linear layer is named 'conv*'" in said
    assert not (in_tmp / "data/trained_networks").exists()
