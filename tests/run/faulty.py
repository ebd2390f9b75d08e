"""A method, a network and a dataset that break in one way or another; parameter files name them as a user's own."""

import os
import signal
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiment.errors import CompressionError
from experiment.methods.masks.magnitude import wt
from experiment.methods.masks.settings import WeightSettings
from experiment.registry import MethodEntry


@dataclass(frozen=True)
class Settings:
    """Which fault; it strikes below keep ratio 0.2, as long as there is no file `mended`."""

    fault: str = "raise"


def break_down(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("boom")
    if fault == "refuse":
        raise CompressionError("this network has no layer to my liking.")
    if fault == "memory":
        raise MemoryError("too large by far")
    if fault == "exit":
        os._exit(3)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "lose Ctrl-C":
        weakref.finalize(set(), signal.raise_signal, signal.SIGINT)  # Python throws away what is raised there
    if fault == "die once" and not Path("died").exists():
        Path("died").touch()
        os._exit(3)


class Faulty:
    """Pruning by magnitude, with a fault."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.method, self.ruin = settings, wt(WeightSettings()), False

    def analyse(self, *arguments: Any) -> Any:
        return self.method.analyse(*arguments)

    def plan(self, analysis: Any, budget: Any) -> Any:
        strikes = budget.limit < 0.2 * budget.original and not Path("mended").exists()
        self.ruin = strikes and self.settings.fault == "nan"
        if strikes:
            break_down(self.settings.fault)
        return self.method.plan(analysis, budget)

    def fill(self, built: nn.Module, *rest: Any) -> None:
        self.method.fill(built, *rest)
        if self.ruin:
            next(built.parameters()).fill_(float("nan"))


ENTRY = MethodEntry("Faulty", Settings, "faulty:Faulty", "weight")


class GivesNaN(nn.Module):
    """A network that trains, and gives NaN as soon as it is tested after that."""

    def __init__(self, input_shape: tuple[int, int, int], output_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], output_size)
        self.trained = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1))
        self.trained |= self.training
        return y * float("nan") if self.trained and not self.training else y


def images(root: Path, train: bool, size: int = 20) -> TensorDataset:
    """Random images of ten classes."""
    generator = torch.Generator().manual_seed(int(train))
    pixels = torch.randint(256, (size, 1, 28, 28), generator=generator).to(torch.uint8)
    return TensorDataset(pixels, torch.arange(size) % 10)
