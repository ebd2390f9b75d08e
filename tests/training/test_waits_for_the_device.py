"""A GPU is waited for once in a while, not at every batch: counted on fake tensors, which need no GPU.

Fake tensors have a device and a shape but no values. What makes a host wait for a GPU is seen as an operator: reading a
value, copying between devices, and results whose shape depends on values.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiment.datasets import in_memory
from experiment.datasets.batch_transforms import compile_steps
from experiment.datasets.in_memory import MemoryImages, Prepared
from experiment.layers.masks import add_masks
from experiment.tasks import find_task
from experiment.training.evaluation import evaluate
from experiment.training.sample_figures import SampleFigures
from experiment.training.schedule import Schedule
from experiment.training.settings import DistillationSpec, PenaltySpec, SchedulerSpec, TrainSettings
from experiment.training.step import TrainingStep, run_steps

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
CUDA = torch.device("cuda")
BATCH = 16
PLAIN = TrainSettings(
    1,
    BATCH,
    optimizer_kwargs={"lr": 0.1, "momentum": 0.9},
    schedulers=(SchedulerSpec("StepLR", {}, {"step_size": 1}),),
    channels_last=True,
)
SETTINGS = {
    "fp32": PLAIN,
    "fp16": replace(PLAIN, precision="fp16"),
    "class weights": replace(PLAIN, loss_kwargs={"weight": [1.0] * 10}),
    "distillation": replace(PLAIN, distillation=DistillationSpec()),
    "penalties": replace(PLAIN, penalties=(PenaltySpec(l1=1e-3, proximal=True), PenaltySpec(l2=1e-3, decoupled=True))),
}


class Waits(TorchDispatchMode):
    """Counts what waits for the fake GPU; values that are read are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        name, given = func.overloadpacket.__name__, [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if name in ("_local_scalar_dense", "item"):
            self.count += given[0].is_cuda
            return 1.0
        if name == "equal":
            self.count += 1
            return True
        if name.startswith("_fused_"):  # optimizers: they return nothing, and have no rules for fake tensors
            return None
        by_values = name in ("nonzero", "bincount", "masked_select", "_unique2")
        self.count += by_values or (name == "index" and any(a.dtype == torch.bool for a in given))
        made = func(*args, **(kwargs or {}))
        if "copy" in name or name == "to":
            devices = {a.device.type for a in (*given, *tree_leaves(made)) if isinstance(a, Tensor)}
            self.count += len(devices) > 1
        return made


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradient scaling as with a GPU, and a backward pass that only allocates: torch's needs the device itself."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(in_memory, "CHUNK_BYTES_ELSEWHERE", 1)  # transforms are applied batch by batch
    with FAKE:
        images(1).first(1)  # copies the constants of transforms to the device, which stay there
        yield


def images(count: int) -> MemoryImages:
    steps: list[tuple[str, dict[str, Any]]] = [("RandomCrop", {"size": 8, "padding": 1}), ("RandomHorizontalFlip", {}),
             ("ToTensor", {}), ("Normalize", {"mean": [0.5] * 3, "std": [0.2] * 3})]  # fmt: skip
    pixels, operations = torch.zeros(count, 3, 8, 8, dtype=torch.uint8, device=CUDA), compile_steps(steps, (3, 8, 8))
    assert operations is not None
    prepared = Prepared(pixels, tuple(operations))
    return MemoryImages(prepared, prepared, torch.zeros(count, dtype=torch.int64, device=CUDA))


def make_network() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, device=CUDA), nn.BatchNorm2d(4, device=CUDA), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, 10, device=CUDA),
    )  # fmt: skip
    add_masks(network, {"0.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool, device=CUDA)})
    return network


def waits_of_training(
    num_steps: int, settings: TrainSettings, adjust: Callable[[nn.Module], object] = lambda network: None
) -> int:
    with Waits() as waits:
        network, data = make_network(), images(num_steps * BATCH)
        teacher = None if settings.distillation is None else lambda x: network(x).detach().float()
        step = TrainingStep(network, settings, Schedule(settings, num_steps), CUDA, model=network, teacher=teacher,
                            adjust_gradients=lambda: adjust(network))  # fmt: skip
        batches = data.batches(BATCH, stream=("train",), channels_last=True)
        run_steps(step, ((x, y, BATCH) for x, y in batches), 0)
    return waits.count


@pytest.fixture
def backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(loss: Tensor) -> None:
        for parameter in parameters_of(loss):
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.autograd, "backward", allocate)


def parameters_of(loss: Tensor) -> Iterator[Tensor]:
    """The leaves of a graph."""
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if (leaf := getattr(node, "variable", None)) is not None:
                yield leaf
            nodes += [following for following, _ in node.next_functions]


@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("name", SETTINGS)
def test_more_steps_wait_no_more_often(name: str) -> None:
    few, many = (waits_of_training(steps, SETTINGS[name]) for steps in (3, 9))
    assert 0 < few == many


@pytest.mark.usefixtures("backward")
def test_a_wait_in_every_step_would_be_seen() -> None:
    few, many = (
        waits_of_training(steps, PLAIN, lambda network: float(next(network.parameters()).detach().sum()))
        for steps in (3, 9)
    )
    assert many - few == 6


def test_larger_test_sets_wait_no_more_often() -> None:
    def waits_of(count: int) -> int:
        samples = SampleFigures(find_task("classification").primary)
        with Waits() as waits:
            network, data = make_network(), images(count)
            evaluate(network, data, device=CUDA, batch_size=BATCH, observers=[samples])
        return waits.count

    assert 0 < waits_of(3 * BATCH) == waits_of(9 * BATCH)
