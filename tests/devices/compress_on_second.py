"""Every method and its variants: a network on another device becomes what it becomes on the CPU."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from second_device import SECOND, register
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock

from experiment import CompressionResult, compress
from experiment.errors import CompressionError
from experiment.inputs import Inputs, call_network, moved, take
from experiment.methods import METHODS
from experiment.random_streams import generator, seeded

register()
torch.backends.cuda.enable_flash_sdp(False)  # else the CPU rounds attention differently

NEEDED: dict[str, dict[str, Any]] = {
    "BlockPrune": {"block_size": (2, 2)},
    "Compose": {"schemes": [{"name": "Prune", "settings": {"density": 0.7}}, {"name": "FT"}]},
    "Mix": {"points": 2, "images": 4, "bits": ("int4",)},
    "KLDS": {"points": 2},
    "NeuronPrune": {"keep": 0.95},
    "Quantize": {"dtype": "int4"},
}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.embed(x)).mean(1))


class Padded(Words):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids * attention_mask)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 1)
        self.block = SwinTransformerBlock(8, 2, [2, 2], [1, 1])
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


NETWORKS = {"images": Residual, "masked": Residual, "words": Words, "padded": Padded, "windows": Windows}


def network(name: str) -> tuple[nn.Module, Inputs, Tensor]:
    """A network with random weights and statistics, 16 inputs and their targets."""
    with seeded(name):
        net = NETWORKS[name]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
    random = generator(name, "data")
    images, words = torch.randn(16, 3, 6, 6, generator=random), torch.randint(11, (16, 5), generator=random)
    x: Inputs = words if name == "words" else images
    if name == "padded":
        x = {"input_ids": words, "attention_mask": (torch.arange(5) < torch.arange(16)[:, None] % 4 + 2).long()}
    if name == "masked":
        net = compress(net, "FT", keep=0.8, example=images[:1]).network
        net = compress(net, "WT", keep=0.7, example=images[:1]).network
    return net.eval(), x, torch.randint(10, (16,), generator=random)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every other value of every setting with few values, once per kind of method."""
    seen = set()
    for label, entry in METHODS.items():
        hints = get_type_hints(entry.settings)
        for field in fields(entry.settings):
            is_choice, usual = (
                get_origin(hints[field.name]) is Literal,
                NEEDED.get(label, {}).get(field.name, field.default),
            )
            values: tuple[Any, ...] = get_args(hints[field.name]) if is_choice else ()
            for value in (not usual,) if hints[field.name] is bool else values:
                if value != usual and (entry.kind, field.name, value) not in seen:
                    seen.add((entry.kind, field.name, value))
                    yield label, {field.name: value}


one_per_target = {entry.target: label for label, entry in reversed(METHODS.items())}.values()
one_per_module = {entry.target.partition(":")[0]: label for label, entry in METHODS.items()}.values()
CASES = [
    *((label, "images", {}) for label in one_per_target),
    *((label, "words", {}) for label in one_per_module),
    *((label, "words" if label == "BlockPrune" else "images", s) for label, s in variants()),
    *((label, "padded", {}) for label in ("PCA", "KLDS", "SiPP", "Wanda", "SNIP", "PFP")),
    *((label, "windows", {}) for label in ("PCA", "FT")),
    *((label, "masked", {}) for label in ("SVD", "KLDS", "FT", "WT", "SiPP", "Quantize")),
    ("FT", "masked", {"fold": "constant", "recalibrate": True}),
    ("SVD", "images", {"randomised_above": 1}),
    ("WT", "images", {"pattern": (2, 4), "keep": None}),
    ("TorchPruning", "images", {"importance": "torch_pruning.pruner.importance:GroupTaylorImportance"}),
]


@pytest.mark.filterwarnings("ignore:.* of the parameters are left")
@pytest.mark.parametrize(("label", "name", "settings"), CASES, ids=str)
def test_same_plan_and_same_network_as_on_the_cpu(label: str, name: str, settings: dict[str, Any]) -> None:
    """Calibration data come from the device for one network and from the CPU for the other; both must be accepted."""
    net, x, y = network(name)
    expected = outcome(net, label, x, (x, y), settings)
    net, there = net.to(SECOND), moved(x, SECOND)
    found = outcome(net, label, there, (there, y.to(SECOND)) if name == "images" else (x, y), settings)
    if isinstance(expected, str):
        assert expected == found
        return
    assert found.plan.to_data() == expected.plan.to_data()
    small = found.network
    tensors = dict(small.state_dict(keep_vars=True))
    assert {key: tensor.device.type for key, tensor in tensors.items()} == dict.fromkeys(tensors, SECOND)
    outputs = call_network(small, there)
    torch.testing.assert_close(outputs.cpu(), call_network(expected.network, x), rtol=1e-4, atol=1e-5)
    nn.functional.cross_entropy(outputs, y.to(SECOND)).backward()
    assert {p.grad.device.type for p in small.parameters() if p.grad is not None} == {SECOND}


def outcome(net: nn.Module, label: str, x: Inputs, data: Any, settings: dict[str, Any]) -> CompressionResult | str:
    """What a method makes of a network, or its error."""
    fixed = getattr(METHODS[label].settings, "fixed_size", False) is True
    settings = {"keep": None if fixed else 0.6, **NEEDED.get(label, {}), **settings}
    try:
        return compress(net, label, example=take(x, slice(0, 1)), data=data, **settings)
    except CompressionError as error:
        return str(error)
