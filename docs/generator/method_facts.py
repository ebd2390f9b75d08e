"""What a method needs and gives, found by running it once on a small network."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment import CompressionResult, compress
from experiment.errors import CompressionError, ConfigError
from experiment.registry import MethodEntry

KEEP = 0.7
REQUIRED: dict[str, dict[str, Any]] = {  # methods with settings that have no default
    "BlockPrune": {"block_size": [5, 4]},
    "Compose": {"schemes": [{"name": "StructurePrune", "settings": {"density": 0.8}}, {"name": "SVD"}]},
}
DATA = {"no data": "", "calibration data": "data=inputs", "calibration data with labels": "data=(inputs, labels)"}
COMMON = {"layer", "kind", "parameters_before", "parameters", "flops_before", "flops"}


@dataclass(frozen=True)
class Facts:
    """What a method needs, what `result.layers` says of its decisions, and the call that makes it run."""

    needs: str
    gives: str
    call: str


class Residual(nn.Module):
    """Two convolutions beside an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def small_network() -> nn.Module:
    """A network with everything that methods look for: convolutions, BatchNorm, residual blocks, linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 16, 3, padding=1), bn=nn.BatchNorm2d(16), relu=nn.ReLU(),
            block1=Residual(16), block2=Residual(16), block3=Residual(16), pool=nn.MaxPool2d(4), flat=nn.Flatten(),
            fc1=nn.Linear(64, 240), relu1=nn.ReLU(), fc2=nn.Linear(240, 10),
        )
    ).eval()  # fmt: skip


def facts(entry: MethodEntry) -> Facts:
    """Run a method without data, then with inputs, then with inputs and labels, until it does not ask for more."""
    network, inputs, labels = small_network(), torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    for (needs, argument), data in zip(DATA.items(), (None, inputs, (inputs, labels)), strict=True):
        try:
            result, keep = _run(network, entry, inputs, data)
        except CompressionError as error:
            refused = error
        else:
            return Facts(needs, _gives(result), _call(entry, keep, argument))
    raise refused


def _run(net: nn.Module, entry: MethodEntry, x: Tensor, data: Any) -> tuple[CompressionResult, float | None]:
    """The result and the keep ratio, None for methods whose settings decide the size and which refuse one."""
    settings = REQUIRED.get(entry.label, {})
    logging.disable(logging.WARNING)  # layers out of reach
    try:
        return compress(net, entry.label, keep=KEEP, example=x, data=data, settings=settings, progress=False), KEEP
    except ConfigError:
        return compress(net, entry.label, example=x, data=data, settings=settings, progress=False), None
    finally:
        logging.disable(logging.NOTSET)


def _gives(result: CompressionResult) -> str:
    columns = [name for name in result.layers if name not in COMMON and result.layers[name].notna().any()]
    kinds = ", ".join(f"`{kind}`" for kind in result.layers["kind"].unique() if kind != "(other)")
    decided = ", ".join(f"`{name}`" for name in columns)
    return f"layers of kind {kinds}" + (f"; per layer, `result.layers` has {decided}" if decided else "")


def _call(entry: MethodEntry, keep: float | None, argument: str) -> str:
    settings = [f"{name}={value!r}" for name, value in REQUIRED.get(entry.label, {}).items()]
    given = [f"keep={keep}"] if keep is not None else []
    arguments = ", ".join(
        ["net", f'"{entry.label}"', *given, "example=x", *([argument] if argument else []), *settings]
    )
    call = f"compress({arguments})"
    return (
        call
        if len(call) < 100
        else call.replace("(", "(\n    ", 1).replace(", schemes", ",\n    schemes")[:-1] + ",\n)"
    )
