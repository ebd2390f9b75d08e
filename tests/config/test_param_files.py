"""Every file that is shipped under param/: loads, expands, names known things, says how to run it."""

import re
from pathlib import Path
from typing import Any

import pytest

from experiment.config import Training, json_schema, keep_steps, load, packaged_param
from experiment.config.includes import Reader
from experiment.config.value_tree import plain
from experiment.methods import METHODS
from experiment.networks import NETWORKS
from experiment.run.grid.plan import Machine, plan_experiment

PARAM = packaged_param()
ROOT = Path(__file__).resolve().parents[2]
ALL = sorted(path.relative_to(PARAM).as_posix() for path in PARAM.rglob("*.yaml"))
FRAGMENTS = [name for name in ALL if name.startswith("training/")]
EXPERIMENTS = [name for name in ALL if name not in FRAGMENTS]
# Fragments that only other fragments include
COMMON = ["training/cifar/common.yaml", "training/imagenet/common.yaml"]


def test_the_tree_is_walked() -> None:
    assert len(EXPERIMENTS) >= 19
    assert {"digits/prune/lenet5.yaml", "images/cifar10jpeg_resnet20.yaml"} <= set(EXPERIMENTS)
    names = {"cifar": "common resnet vgg densenet wrn cnn5 lenet5", "imagenet": "common resnet alexnet vgg wrn mbv2"}
    wanted = {f"training/{folder}/{name}.yaml" for folder in names for name in names[folder].split()}
    assert wanted | {"training/mnist/lenet.yaml"} <= set(FRAGMENTS)
    assert not list(PARAM.rglob("*.yml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_loads_and_expands(name: str) -> None:
    file = load(name)
    assert file.name() == name.removesuffix(".yaml")
    assert file.notices == ()
    for variant in file.variants:
        experiments = variant.parameters.experiments
        assert variant.parameters.network.name in NETWORKS
        assert {m.name for m in experiments.methods} <= set(METHODS)
    plan = plan_experiment(file, Machine("cpu"))
    assert not plan.problems
    assert bool(plan.chains) == any(v.parameters.experiments.mode != "train" for v in file.variants)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_opens_with_the_command_and_what_to_expect(name: str) -> None:
    head = (PARAM / name).read_text().split("\n\n")[0].splitlines()
    assert head[0] == f"# python -m experiment.main param/{name}"
    assert any(line.startswith("# Expect:") for line in head)


def test_every_file_stands_in_the_table_of_files() -> None:
    table = re.findall(r"^\| `([\w/]+\.yaml)` \|", (ROOT / "param/README.md").read_text(), re.MULTILINE)
    assert sorted(table) == ALL


@pytest.mark.parametrize("name", ALL)
def test_editors_know_every_key(name: str) -> None:
    schema = json_schema()
    block = schema["$defs"]["Training"] if name in FRAGMENTS else schema
    found: list[Any] = []
    root = Reader().read(PARAM / name)
    check_keys(plain(root), block, schema["$defs"], found)
    assert found == []


def check_keys(values: Any, block: dict[str, Any], definitions: dict[str, Any], found: list[Any]) -> None:
    """Every key of `values` is a property of the JSON schema's block (of one of its alternatives)."""
    if "$ref" in block:
        block = definitions[block["$ref"].rpartition("/")[2]]
    options = block.get("anyOf", block.get("oneOf"))
    if options is not None:
        options = [definitions[o["$ref"].rpartition("/")[2]] if "$ref" in o else o for o in options]
        options = [inner for o in options for inner in o.get("anyOf", [o])]
        kind = {dict: "object", list: "array"}.get(type(values))
        if kind is None:
            return
        keys = set(values) if isinstance(values, dict) else set()
        fitting = [o for o in options if o.get("type") == kind and keys <= set(o.get("properties", keys))]
        assert fitting, f"no alternative fits {values}"
        block = fitting[0]
    if isinstance(values, dict) and "properties" in block:
        found += [key for key in values if key not in block["properties"]]
        for key in values.keys() & block["properties"].keys():
            check_keys(values[key], block["properties"][key], definitions, found)
    elif isinstance(values, list) and "items" in block:
        for value in values:
            check_keys(value, block["items"], definitions, found)


@pytest.mark.parametrize("name", [n for n in FRAGMENTS if n not in COMMON])
def test_fragments_are_whole_trainings(name: str) -> None:
    reader = Reader()
    Training.model_validate(plain(reader.read(PARAM / name)))
    assert reader.problems == []


def sgd(lr: float, weight_decay: float, nesterov: bool = False) -> tuple[str, dict[str, Any]]:
    return "SGD", {"lr": lr, "momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}


def steps(*milestones: int) -> tuple[str, dict[str, Any]]:
    return "MultiStepLR", {"milestones": list(milestones)}


def warmup(epochs: int) -> tuple[str, dict[str, Any]]:
    return "WarmupLR", {"warmup_epoch": epochs}


IMAGENET = [steps(30, 60, 80), warmup(5)]
RMSPROP = "RMSprop", {"lr": 0.045, "alpha": 0.9, "momentum": 0.9, "weight_decay": 4e-5}
PRESETS: dict[str, tuple[int, tuple[str, dict[str, Any]], int, list[tuple[str, dict[str, Any]]]]] = {
    "cifar/resnet": (128, sgd(0.1, 1e-4), 182, [steps(91, 136), warmup(5)]),
    "cifar/vgg": (256, sgd(0.05, 5e-4), 300, [("StepLR", {"step_size": 30}), warmup(10)]),
    "cifar/wrn": (128, sgd(0.1, 5e-4, nesterov=True), 200, [steps(60, 120, 160), warmup(5)]),
    "cifar/densenet": (64, sgd(0.1, 1e-4, nesterov=True), 300, [steps(150, 225), warmup(10)]),
    "cifar/cnn5": (128, ("Adam", {"lr": 0.001}), 60, [steps(50)]),
    "cifar/lenet5": (64, sgd(0.01, 1e-4), 40, [steps(25, 35)]),
    "mnist/lenet": (64, sgd(0.01, 1e-4), 50, [steps(30, 45)]),
    "mnist/lenet5": (64, sgd(0.01, 1e-4), 40, [steps(25, 35)]),
    "imagenet/resnet": (256, sgd(0.1, 1e-4), 90, IMAGENET),
    "imagenet/alexnet": (256, sgd(0.1, 1e-4), 90, IMAGENET),
    "imagenet/wrn": (128, sgd(0.1, 5e-4, nesterov=True), 90, IMAGENET),
    "imagenet/vgg": (16, sgd(0.01, 5e-4), 90, IMAGENET),
    "imagenet/mbv2": (768, RMSPROP, 300, [("StepLR", {"step_size": 1})]),
    "voc/deeplab": (16, sgd(0.02, 1e-4), 45, [("PolyLR", {"max_epoch": 45})]),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_torchprune(name: str) -> None:
    training = Training.model_validate(plain(Reader().read(PARAM / f"training/{name}.yaml")))
    batch, optimizer, epochs, schedulers = PRESETS[name]
    assert (training.batch_size, training.num_epochs) == (batch, epochs)
    assert (training.optimizer, training.optimizer_kwargs) == optimizer
    assert [(s.type, s.step_kwargs) for s in training.lr_schedulers] == schedulers


@pytest.mark.parametrize(("network", "preset"), [("vgg16_bn", "vgg"), ("densenet22", "densenet"), ("wrn16_8", "wrn")])
def test_cifar_networks_have_their_own_training(network: str, preset: str) -> None:
    """They include resnet20.yaml: nothing of its training may be left."""
    training = load(f"cifar/prune/{network}.yaml").parameters.training
    assert training == Training.model_validate(plain(Reader().read(PARAM / f"training/cifar/{preset}.yaml")))


def test_grids_of_the_alds_paper() -> None:
    def ends(name: str) -> tuple[int, float, float]:
        keeps = [s.keep for s in keep_steps(load(name).parameters.experiments)]
        return len(keeps), keeps[0], keeps[-1]

    assert ends("cifar/prune/resnet20.yaml") == (20, 0.97, 0.2)
    assert ends("cifar/retrain/resnet20.yaml") == (20, 0.85, 0.03)
    assert ends("imagenet/prune/resnet18.yaml") == (15, 0.98, 0.15)
    assert ends("imagenet/prune/mobilenet_v2.yaml") == (20, 0.99, 0.7)


def test_the_retrain_sweep_goes_from_everything_to_nothing() -> None:
    variants = load("cifar/retrainsweep/resnet20.yaml").variants
    starts = [v.parameters.retraining.start_epoch for v in variants]
    assert (len(starts), starts[0], starts[-1]) == (15, 0, 182)
    assert starts == sorted(starts)


def test_prune_and_retrain_share_their_networks() -> None:
    for name in ("mnist/{}/lenet300_100.yaml", "mnist/{}/lenet5.yaml", "cifar/{}/resnet20.yaml"):
        prune, retrain = (load(name.format(kind)).parameters for kind in ("prune", "retrain"))
        assert (prune.network, prune.training, prune.seed) == (retrain.network, retrain.training, retrain.seed)
        assert prune.retraining.num_epochs == 0
        assert retrain.retraining.num_epochs > retrain.retraining.start_epoch


def test_the_demo_is_small() -> None:
    p = load("digits/prune/lenet5.yaml").parameters
    assert {"WT", "FT", "SVD", "ALDS"} <= {m.name for m in p.experiments.methods}
    assert (p.experiments.num_nets, len(keep_steps(p.experiments))) == (2, 6)
    epochs = p.retraining.num_epochs - p.retraining.start_epoch
    cells = p.experiments.num_nets * len(p.experiments.methods) * 6
    images = 1300 * (p.experiments.num_nets * p.training.num_epochs + cells * epochs)
    assert images / 4000 / 2 < 75  # seconds of training on two workers, half of what the demo may take


def test_the_lottery_compares_weights_alone() -> None:
    file = load("mnist/lottery/lenet300_100.yaml")
    keeps = [s.keep for s in keep_steps(file.parameters.experiments)]
    assert keeps == pytest.approx([0.8**i for i in range(1, 11)])
    assert [v.name for v in file.variants] == ["experiments.rewind=weights", "experiments.rewind=random"]
    assert file.parameters.training == load("mnist/prune/lenet300_100.yaml").parameters.training


def test_fine_tuning_runs_at_the_last_learning_rate() -> None:
    p = load("mnist/finetune/lenet300_100.yaml").parameters
    lr, gamma = p.training.optimizer_kwargs["lr"], p.training.lr_schedulers[0].kwargs["gamma"]
    assert p.retraining.optimizer_kwargs["lr"] == pytest.approx(lr * gamma)
    assert p.retraining.lr_schedulers == []
    assert p.experiments.mode == "cascade"
