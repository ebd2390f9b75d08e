"""The hardware that an experiment runs on, as far as it affects numbers and the number of cells that run at once."""

from dataclasses import dataclass
from typing import Literal

from experiment.config import Parameters, Training

Precision = Literal["fp32", "bf16", "fp16"]

_ROUNDING = 1e-9  # 1 / 0.1 cells share a GPU: ten, not nine


@dataclass(frozen=True)
class Machine:
    """The device to compute on. Its kind, `processes` and `auto` affect numbers and are part of keys.

    Attributes:
        device: cpu, cuda, cuda:1, ...
        processes: number of processes that train each network together.
        auto: what `precision: auto` means on this device.
    """

    device: str
    processes: int = 1
    auto: Precision = "fp32"

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]


def resolved_precision(training: Training, machine: Machine) -> Precision:
    """The number format of training."""
    if training.precision != "auto":
        return training.precision
    return machine.auto if training.enable_amp else "fp32"


def resolved_channels_last(training: Training, machine: Machine) -> bool:
    """Whether images and weights use the channels-last format. Default: on CPUs, and on GPUs in reduced precision.

    On CPUs, convolutions train 1.3 to 1.5 times as fast with it.
    """
    if training.channels_last is not None:
        return training.channels_last
    return machine.kind == "cpu" or resolved_precision(training, machine) != "fp32"


@dataclass(frozen=True)
class Resources:
    """The share of a machine that a cell occupies: CPU cores, and a share of a GPU in (0, 1], or 0 without GPU."""

    cpus: int
    gpus: float

    def fit(self, cpus: float, gpus: float) -> int:
        """Number of cells that run at once on this many cores and GPUs. A cell uses at most one GPU."""
        by_cores = int(cpus // self.cpus)
        return by_cores if self.gpus == 0 else min(by_cores, self.fit_gpus(int(gpus)))

    def fit_gpus(self, gpus: int) -> int:
        """Number of cells that run at once on this many GPUs."""
        return gpus * int(1 / self.gpus + _ROUNDING)


def resources_of(p: Parameters, machine: Machine) -> Resources:
    """The resources of a cell. Default: one core per thread and, on GPUs, a whole GPU."""
    given = p.resources
    gpus = (1.0 if given.gpus is None else given.gpus) if machine.kind == "cuda" else 0.0
    return Resources(given.cpus or p.threads, gpus)
