"""torchprune's parameter files, in files of the same shapes: deep merging gives the grids of its shallow merging.

The reference below is torchprune's semantics as documented: an included mapping is updated, key by key, with what the
including one has; the value at a key is replaced whole.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiment.config import keep_steps, load, packaged_param
from experiment.config.value_tree import plain
from experiment.config.yaml_file import parse
from experiment.run.grid.keys import MADE
from experiment.run.grid.plan import Machine, plan_experiment

GRID_69 = """\
  spacing:
    - {type: "geometric", numIntervals: 2, maxVal: 0.99, minVal: 0.855}
    - {type: "geometric", numIntervals: 58, maxVal: 0.85, minVal: 0.15}
    - {type: "linear", numIntervals: 9, maxVal: 0.132, minVal: 0.02}
  retrainIterations: 23
"""
NETWORK = (
    'network: {name: "resnet20", dataset: "CIFAR10", outputSize: 10}\ntraining: {file: "training/cifar/resnet.yaml"}\n'
)
PRUNE = """\
retraining: {numEpochs: 0}
experiments:
  methods: ["ALDSNet", "PCANet", "SVDFrobeniusNet", "SVDNet", "LearnedRankNetScheme0", "FilterThresNet", "PFPNet"]
  mode: "retrain"
  numRepetitions: 1
  numNets: 3
  plotting: {minVal: 0.2, maxVal: 0.95}
  spacing:
    - {type: "geometric", numIntervals: 20, maxVal: 0.97, minVal: 0.2}
  retrainIterations: -1
"""
SWEEP = "customizations: # one value each\n"
FILES = {
    # the experiment in a file of its own; the network and training here
    "prune/common.yaml": PRUNE,
    "prune/network.yaml": NETWORK + 'file: "prune/common.yaml"\n',
    "retrain/common.yaml": PRUNE.replace("numEpochs: 0", "startEpoch: 0").replace("0.97", "0.85"),
    "retrain/network.yaml": NETWORK + 'file: "retrain/common.yaml"\n',
    # the amount of retraining varied
    "sweep.yaml": 'file: "retrain/network.yaml"\n'
    + SWEEP
    + "".join(f'  - {{key: ["retraining", "startEpoch"], value: {e}}}\n' for e in (0, 46, 91, 136, 181, 182)),
    # three compressions a retraining, in a cascade
    "cascade.yaml": f"""\
{NETWORK}
retraining: {{}}
experiments:
  methods: ["SiPPNet", "SiPPNetRand", "ThresNet", "SnipNet"]
  mode: "cascade"
  numRepetitions: 1
  numNets: 3
  plotting: {{minVal: 0.02, maxVal: 0.85}}
{GRID_69}""",
    # prune at initialisation
    "init.yaml": f"""\
{NETWORK.replace('resnet.yaml"', 'resnet.yaml", numEpochs: 0')}
{PRUNE.replace("numEpochs: 0", "numEpochs: 182")}
coresets: {{deltaS: 1.0e-16, deltaBest: 1.0e-11, sizeOfT: 0.1}}
""",
    # a network included and renamed; the experiment through two includes; arguments replaced whole
    "node/directories.yaml": """\
directories: {results: ./data/node, trained_networks: null, training_data: ./data/training, local_data: ./local}
""",
    "node/experiment.yaml": """\
file: "node/directories.yaml"
retraining: {startEpoch: 0}
experiments:
  methods: ["FilterThresNet", "ThresNet"]
  mode: "cascade"
  numRepetitions: 1
  numNets: 3
  plotting: {minVal: 0.02, maxVal: 0.85}
  spacing:
    - {type: "geometric", numIntervals: 20, maxVal: 0.80, minVal: 0.20}
    - {type: "linear", numIntervals: 9, maxVal: 0.18, minVal: 0.02}
  retrainIterations: -1
""",
    "node/network.yaml": 'name: "node_l2"\ndataset: "ToyMoons"\noutputSize: 2\n',
    "node/training.yaml": """\
transformsTrain: []
transformsTest: []
transformsFinal: []
loss: NLLPriorLoss
lossKwargs: {}
metricsTest: [{type: NLLPrior, kwargs: {}}, {type: Dummy, kwargs: {}}]
batchSize: 1024
optimizer: AdamW
optimizerKwargs: {lr: 5.0e-3, weight_decay: 1.0e-5}
numEpochs: 100
earlyStopEpoch: 0
enableAMP: False
lrSchedulers: []
""",
    "node/vanilla.yaml": """\
network: {file: "node/network.yaml", name: "cnf_l2"}
training: {file: "node/training.yaml"}
file: "node/experiment.yaml"
""",
    "node/optimizers.yaml": """\
network: {file: "node/network.yaml"}
training: {file: "node/training.yaml"}
file: "node/experiment.yaml"
customizations:
  - {key: ["training", "optimizerKwargs"], value: {"lr": 0.05}}
  - {key: ["training", "optimizerKwargs"], value: {"lr": 0.05, "weight_decay": 1.0e-6}}
  - {key: ["network", "name"], value: "node_l4_h32_tanh"}
""",
    # an old spacing and old keys; other transforms than the included file's
    "harmonic.yaml": """\
description: "LeNet"
network: {name: "lenet300_100", dataset: "MNIST", outputSize: 10}
training:
  file: "training/mnist/lenet.yaml"
  transformsTest: [{type: Pad, kwargs: {padding: 4}}]
retraining: {}
experiments:
  methods: ["PFPNet", "SoftNet"]
  datasetsToEvaluate: ["MNIST"]
  mode: "cascade"
  numRepetitions: 1
  numNets: 3
  spacing: [{type: "harmonic", numIntervals: 0.8, minVal: 0.05}]
  retrainIterations: -1
coresets: {deltaS: 1.0e-12}
""",
}
FRAGMENTS = {f"{folder}/common.yaml" for folder in ("prune", "retrain")} | {
    f"node/{part}.yaml" for part in ("directories", "experiment", "network", "training")
}
EXPERIMENTS = [
    n for n in FILES if n not in FRAGMENTS and not n.startswith(("node/dir", "node/exp", "node/net", "node/tra"))
]


def shallow(name: str) -> dict[str, Any]:
    """A file with its includes as torchprune reads it."""
    path = Path(name) if Path(name).is_file() else packaged_param() / name
    found = plain(parse(path.read_text(), name, []))  # type: ignore[arg-type]
    return shallow_in(found)


def shallow_in(values: dict[str, Any]) -> dict[str, Any]:
    base = shallow(values["file"]) if "file" in values else {}
    own = {k: shallow_in(v) if isinstance(v, dict) else v for k, v in values.items() if k != "file"}
    return {**base, **own}


def shallow_variants(values: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for custom in values.get("customizations", []):
        variant = copy.deepcopy(values)
        place = variant
        for key in custom["key"][:-1]:
            place = place.setdefault(key, {})  # torchprune's defaults have the block
        place[custom["key"][-1]] = custom["value"]
        found.append(variant)
    return found or [values]


def ratios(block: dict[str, Any]) -> list[float]:
    if block["type"] == "harmonic":
        a = np.log(2) / np.log(1 + block["numIntervals"])
        return [(i + 1) ** -a for i in range(1, int(block["minVal"] ** (-1 / a)) + 1)]
    space = {"geometric": np.geomspace, "linear": np.linspace}[block["type"]]
    return space(block["maxVal"], block["minVal"], block["numIntervals"]).tolist()


def grid(values: dict[str, Any]) -> tuple[Any, ...]:
    """All that decides which cells there are, by torchprune's rules."""
    e = values["experiments"]
    retraining = {**values["training"], "startEpoch": 0, **values["retraining"]}
    everything = [r for block in e["spacing"] for r in ratios(block)]
    parts = np.array_split(everything, e["retrainIterations"] if e["retrainIterations"] >= 1 else len(everything))
    return (
        (values["network"]["name"], values["network"]["dataset"], e.get("datasetTest")),
        (e["methods"], e["mode"], e["numNets"], e["numRepetitions"]),
        values["training"]["numEpochs"],
        (retraining["startEpoch"], retraining["numEpochs"]),
        [part.tolist() for part in parts],
    )


@pytest.fixture
def files(write: Callable[..., None]) -> None:
    write(FILES)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_grid_is_torchprunes(name: str) -> None:
    file = load(name)
    expected = [grid(values) for values in shallow_variants(shallow(name))]
    assert len(file.variants) == len(expected)
    for variant, (names, experiment, epochs, retrained, parts) in zip(file.variants, expected, strict=True):
        p, e = variant.parameters, variant.parameters.experiments
        test = e.dataset_test[0].name if e.dataset_test else None
        assert (p.network.name, p.network.dataset.name, test) == names
        assert ([m.name for m in e.methods], e.mode, e.num_nets, e.num_repetitions) == experiment
        assert p.training.num_epochs == epochs
        assert (p.retraining.start_epoch, p.retraining.num_epochs) == retrained
        steps = keep_steps(e)
        assert [len(s.between) + 1 for s in steps] == [len(part) for part in parts]
        flat = [r for s in steps for r in (*s.between, s.keep)]
        assert flat == pytest.approx([r for part in parts for r in part], rel=1e-9)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training_is_torchprunes(name: str) -> None:
    file = load(name)
    for variant, values in zip(file.variants, shallow_variants(shallow(name)), strict=True):
        training, expected = variant.parameters.training, values["training"]
        assert training.batch_size == expected["batchSize"]
        assert (training.optimizer, training.optimizer_kwargs) == (expected["optimizer"], expected["optimizerKwargs"])
        assert [s.type for s in training.lr_schedulers] == [s["type"] for s in expected["lrSchedulers"]]
        for key in ("Train", "Test", "Final"):
            ours = variant.parameters.training.model_dump(by_alias=True)[f"transforms{key}"]
            assert [(t["type"], t["kwargs"]) for t in ours] == [
                (t["type"], t.get("kwargs", {})) for t in expected[f"transforms{key}"]
            ]


def test_the_reference_reads_yaml_as_pyyaml_does() -> None:
    for text in FILES.values():
        assert plain(parse(text, "f", [])) == yaml.safe_load(text)  # type: ignore[arg-type]


@pytest.mark.usefixtures("files")
def test_the_reference_tells_merging_apart(write: Callable[..., None]) -> None:
    """Where a file relied on torchprune's shallow merging, the two would differ, and the comparison would notice."""
    write({"part.yaml": 'file: "cascade.yaml"\nexperiments: {numNets: 5}\n'})
    assert "methods" not in shallow("part.yaml")["experiments"]
    assert len(load("part.yaml").parameters.experiments.methods) == 4


SHORT = (
    "Blur Brightness Contrast Defocus Elastic Fog Frost Gauss Glass Impulse Jpeg Motion Pixel Sat Shot Snow Spatter "
    "Speckle Zoom"
)
TESTED = {  # the sweeps of "Lost in Pruning": trained on -> network, outputs, training, tested on
    "CIFAR10": ("resnet20", 10, "cifar/resnet", ["CIFAR10", "CIFAR10_1", *(f"CIFAR10_C_{s}_3" for s in SHORT.split())]),
    "CIFAR10_C_Mix1": (
        "resnet20", 10, "cifar/resnet",
        [f"CIFAR10_C_{short}_{i}" for short in ("Brightness", "Fog", "Jpeg", "Zoom") for i in range(1, 6)],
    ),
    "ImageNet": (
        "resnet18", 1000, "imagenet/resnet", ["ImageNet", "ObjectNet", *(f"ImageNet_C_{s}_3" for s in SHORT.split())],
    ),
    "VOCSegmentation2011": (
        "deeplabv3_resnet50", 21, "voc/deeplab",
        ["VOCSegmentation2011", *(f"VOCSegmentation2011_C_{s}_3" for s in SHORT.split())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("trained_on", TESTED)
def test_sweeps_of_test_sets_plan_without_an_unknown_name(trained_on: str, write: Callable[..., None]) -> None:
    name, outputs, training, tests = TESTED[trained_on]
    own = {
        "network": {"name": name, "dataset": trained_on, "outputSize": outputs},
        "training": {"file": f"training/{training}.yaml"},
        "customizations": [{"key": ["experiments", "datasetTest"], "value": test} for test in tests],
    }
    write({"lost.yaml": yaml.safe_dump(yaml.safe_load(PRUNE) | own)})
    plan = plan_experiment(load("lost.yaml"), Machine("cpu"), datasets=Path("nowhere"))
    assert plan.problems == ()
    made = {cell.made for cell in plan.cells if cell.made}
    assert len({cell.key[:MADE] for cell in plan.cells if cell.made}) == len(made)  # all test sets share the networks
    assert len({cell.key for cell in plan.cells}) == len(tests) * (len(made) + 3)
