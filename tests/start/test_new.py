"""`--new`: what it writes loads and plans, for every network; what it finds out; what it asks, and refuses."""

import builtins
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiment.config import DatasetRef, load
from experiment.datasets import DATASETS
from experiment.main import main
from experiment.networks import NETWORKS
from experiment.registry import NetworkEntry
from experiment.report import Report
from experiment.run.grid.plan import Machine, plan_experiment
from experiment.start import defaults, interview
from experiment.start.look_at_data import look_at_data

FITTING = {  # network -> a dataset that needs no files, or whose shape the registry knows; Digits for others
    "gpt_small": "PythonDocs", "bert": "GlueSST2", "mlp": "Diabetes", "unet": "DigitScenes",
    "lraspp_mobilenet_v3_large": "VOCSegmentation2012",
}  # fmt: skip
OWN = """
import torch
from torch.utils.data import TensorDataset
def net(input_shape, output_size, width=8):
    first = torch.nn.Linear(int(torch.tensor(input_shape).prod()), width)
    return torch.nn.Sequential(torch.nn.Flatten(1), first, torch.nn.ReLU(), torch.nn.Linear(width, output_size))
def classes(root, train): return TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 3)
def values(root, train): return TensorDataset(torch.rand(40, 5), torch.rand(40, 2))
def labels(root, train): return TensorDataset(torch.rand(40, 5), (torch.rand(40, 4) > 0.5).float())
MAP, WORDS = torch.arange(64).reshape(8, 8) % 6, torch.arange(400).reshape(40, 10) % 50
def maps(root, train): return TensorDataset(torch.rand(40, 3, 8, 8), MAP.expand(40, 8, 8))
def words(root, train): return TensorDataset(WORDS, WORDS)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return tmp_path


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without making the network, which takes seconds for the large ones."""
    monkeypatch.setattr(interview, "seconds_per_sample", lambda *_: 0.01)


def new(path: str, **settings: str) -> int:
    given = [f"--set={key.replace('__', '.')}={value}" for key, value in settings.items()]
    return main(["--new", path, "--device", "cpu", *given])


def assert_whole(path: str) -> Mapping[str, Any]:
    """Both files load without a notice, and have plans without a problem; returns the values of the first."""
    for name in (path, path.replace(".yaml", "_smoke.yaml")):
        text = Path(name).read_text()
        assert text.startswith(f"# python -m experiment.main {name}\n")
        assert max(map(len, text.splitlines())) <= 160
        file = load(name)
        assert file.notices == ()
        plan = plan_experiment(file, Machine("cpu"))
        assert plan.problems == ()
        assert plan.chains
    assert len(plan.cells) <= 1 + 2 * 6  # the twin
    assert all(cell.epochs_train <= 1 and cell.epochs_retrain <= 1 for cell in plan.cells)
    return load(path).values


def dataset_of(entry: NetworkEntry) -> str:
    if entry.name in FITTING:
        return FITTING[entry.name]
    module = entry.target.partition(":")[0].rpartition(".")[2]
    by_module = {"segmentation_networks": "VOCSegmentation2012", "torchvision_networks": "ImageNet", "lenet": "Digits"}
    return by_module.get(module, "CIFAR10")


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("entry", NETWORKS.values(), ids=lambda entry: entry.name)
def test_a_file_for_every_network_loads(entry: NetworkEntry) -> None:
    dataset = dataset_of(entry)
    assert new("new.yaml", network__name=entry.name, network__dataset=dataset) == 0
    values = assert_whole("new.yaml")
    assert values["network"]["outputSize"] == (DATASETS[dataset].num_classes or 128)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("name", [entry.name for entry in DATASETS.values() if entry.num_classes])
def test_a_file_for_every_dataset_loads(name: str) -> None:
    look = look_at_data(name, {}, Path("data/datasets"), None)
    assert new("new.yaml", network__name=defaults.network_for(look), network__dataset=name) == 0
    assert_whole("new.yaml")


@pytest.mark.parametrize(
    ("name", "task", "outputs", "head"),
    [
        ("classes", "classification", 3, "1 x 8 x 8"),
        ("values", "regression", 2, "5"),
        ("labels", "multilabel", 4, "5"),
        ("maps", "segmentation", 6, "3 x 8 x 8"),
        ("words", "language_modelling", 50, "10"),
    ],
)
def test_what_the_users_own_data_are_is_found_out(
    name: str, task: str, outputs: int, head: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"own_{name}"  # a name of its own: modules are imported once
    (place / f"{module}.py").write_text(OWN)
    monkeypatch.syspath_prepend(place)
    look = look_at_data(f"{module}:{name}", {}, place, None)
    assert (look.task, look.outputs, look.num_train) == (task, outputs, 40)
    assert " x ".join(map(str, look.shape or ())) == head
    if name in ("classes", "values", "labels"):
        assert new("mine.yaml", network__name=f"{module}:net", network__dataset=f"{module}:{name}") == 0
        values = assert_whole("mine.yaml")
        assert values["network"].get("task", "classification") == task


def test_images_of_several_sizes_are_resized(place: Path) -> None:
    for part in ("train", "test"):
        for i, name in enumerate(("ants", "bees", "cats")):
            (place / "pictures" / part / name).mkdir(parents=True)
            for j in range(3):
                Image.new("RGB", (70 + 10 * i, 90 + j), (255, 0, 0)).save(place / "pictures" / part / name / f"{j}.png")
    look = look_at_data("ImageFolder", {"root": "pictures"}, place, None)
    assert (look.outputs, look.shape, look.num_train, look.several_sizes) == (3, (3, 64, 64), 9, True)
    assert look.mean == (1.0, 0.0, 0.0)
    training = defaults.training_for("resnet20", DatasetRef(name="ImageFolder", settings={"root": "pictures"}), look)
    assert [step["type"] for step in training["transformsTest"]] == ["Resize", "CenterCrop"]


def test_a_twin_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interview, "seconds_per_sample", lambda *_: 1.0)  # so slow that the twin gets few samples
    nothing = Report([], *map(Path, ("report.md", "report.html", "table.tex", "comparisons.csv")))
    monkeypatch.setattr("experiment.report.write_report", lambda folder: nothing)
    assert new("a.yaml", network__name="lenet300_100", network__dataset="Digits", experiments__methods="[WT]") == 0
    assert load("a_smoke.yaml").parameters.network.dataset.max_samples == 200
    assert main(["a_smoke.yaml", "-j", "1", "-q"]) == 0
    rows = Path("data/results/a_smoke/results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    assert all(",done," in row for row in rows[1:])


def test_the_schedule_of_a_packaged_file_is_kept_in_fewer_epochs() -> None:
    assert new("a.yaml", network__name="lenet5", network__dataset="Digits") == 0
    packaged, found = load("param/digits/prune/lenet5.yaml").values, load("a.yaml").values
    assert {key: found["training"][key] for key in packaged["training"]} == packaged["training"]
    assert found["retraining"] == packaged["retraining"]
    assert new("b.yaml", network__name="lenet5", network__dataset="Digits", training__numEpochs="4") == 0
    found = load("b.yaml").values
    assert found["training"]["lrSchedulers"][0]["stepKwargs"] == {"milestones": [3, 4]}
    assert found["retraining"] == {"startEpoch": 3}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"network__name": "lenet5"}, "Which dataset? Answer with --set network.dataset.name=..."),
        ({"network__dataset": "Digits"}, "Which network? Answer with --set network.name=..."),
        ({"network__dataset": "Digit"}, "--set network.dataset.name: unknown dataset 'Digit'. Did you mean 'Digits'?"),
        ({"network__dataset": "ImageFolder"}, "--set network.dataset.settings.root=..."),
        (
            {"network__dataset": "{name: ImageFolder, settings: {root: nowhere}}"},
            "no folder data/datasets/nowhere/train",
        ),
        ({"network__dataset": "Digits", "network__name": "lenet"}, "--set network.name: unknown network 'lenet'"),
        ({"network__dataset": "Digits", "network__name": "gpt_small"}, "gpt_small needs inputs (positions,)"),
        ({"network__dataset": "Digits", "network__name": "lenet5", "experiments__methods": "[WTT]"}, "method 'WTT'"),
        ({"network__dataset": "Digits", "network__name": "lenet5", "training__numEpoch": "3"}, "'numEpochs'"),
        ({"network__dataset": "Digits", "network__name": "lenet5", "training__numEpochs": "few"}, "Got 'few'"),
    ],
)
def test_what_is_missing_or_wrong_is_one_clear_error(settings: dict[str, str], part: str, capsys: Any) -> None:
    assert new("new.yaml", **settings) == 2
    error = capsys.readouterr().err
    assert part in error
    assert "Traceback" not in error
    assert not list(Path().glob("*.yaml"))


def test_no_file_is_overwritten(capsys: Any) -> None:
    Path("a_smoke.yaml").write_text("mine")
    assert new("a.yaml", network__name="lenet5", network__dataset="Digits") == 2
    assert "a_smoke.yaml exists, and is not overwritten" in capsys.readouterr().err
    assert not Path("a.yaml").exists()
    assert Path("a_smoke.yaml").read_text() == "mine"


def test_answers_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def answers() -> Iterator[str]:
        yield from ("Digit", "Digits", "", "nowhere.pt", "", "many", "6", "masks, TF", "masks, FT")

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    line = answers()
    monkeypatch.setattr(builtins, "input", lambda prompt: next(line))
    assert main(["--new", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for refused in ("unknown dataset 'Digit'", "no file 'nowhere.pt'", "Got 'many'", "unknown method 'TF'"):
        assert refused in out
    values = assert_whole("lenet5_Digits.yaml")
    assert values["experiments"]["methods"] == ["WT", "SNIP", "FT"]
    assert values["training"]["numEpochs"] == 6
    assert "python -m experiment.main lenet5_Digits_smoke.yaml" in out


def test_an_end_of_the_input_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def ended(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", ended)
    assert main(["--new", "--device", "cpu"]) == 2
    assert "no answer" in capsys.readouterr().err


def test_few_samples_are_the_same_ones_and_change_keys_only_where_they_are_asked_for() -> None:
    from experiment.datasets.loading import load_source
    from experiment.datasets.raw_images import Pixels, some_of

    source = load_source("DigitScenes", {}, Path(), True, 11)
    few, again = (some_of(source, 50, "DigitScenes") for _ in range(2))
    assert isinstance(few.items, Pixels)
    assert isinstance(again.items, Pixels)
    assert len(few.items) == 50
    assert torch.equal(few.items.images, again.items.images)
    assert type(few.items.labels) is type(source.items.labels)  # type: ignore[union-attr]
    assert some_of(source, 10**6, "DigitScenes") is source
    file = load("param/digits/prune/lenet5.yaml")
    few_file = load(file.path, ["network.dataset.maxSamples=100"])
    keys, few_keys = ({c.key for c in plan_experiment(f, Machine("cpu")).cells} for f in (file, few_file))
    assert not keys & few_keys
