"""What this machine is, as far as results depend on it or a reader would want to know it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from experiment.errors import ConfigError
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.grid.plan import Machine
from experiment.run.grid.resolved import Precision
from experiment.run.torchrun_launch import Launch, find_launch

# What the drivers of NVIDIA (Linux, Jetson, WSL2) and AMD (ROCm) leave where there is a GPU.
DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
# Which GPUs a process sees; of several that are set, ROCm obeys the first one.
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
MOST_READERS = 8  # beyond that, memory bears more than time gains
PACKAGES = ("experiment", "torch", "torchvision", "numpy", "pandas", "matplotlib")


def find_machine(device: str) -> Machine:
    """The machine with the device that the command line asks for; `auto` takes a GPU if there is one that works.

    Torch decides. It is imported only where a driver is installed, so that planning stays quick elsewhere.
    Under torchrun each process has the GPU of its own number.
    Raises: ConfigError: there is no such device.
    """
    launch = find_launch()
    machine = _alone(device)
    return machine if launch is None else _one_of_several(machine, launch)


def usable_cores() -> int:
    """The CPU cores that this process may use: a batch system may give it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading_processes(cells: int = 1, threads: int = 1) -> int:
    """How many processes read images for one cell: the cores that are left to it beside its threads.

    Args:
        cells: computed at once on this machine by one command; torchrun's processes count as well.
        threads: with which each is computed. On one core there is no process but its own.
    """
    launch = find_launch()
    processes = cells * (1 if launch is None else launch.local_size)
    return max(0, min(MOST_READERS, usable_cores() // processes - threads))


def _one_of_several(machine: Machine, launch: Launch) -> Machine:
    if machine.kind != "cuda":
        return replace(machine, processes=launch.size)
    if machine.device != "cuda":
        raise ConfigError(
            f"--device {machine.device}: under torchrun every process takes a GPU of its own. Use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among them."
        )
    gpus = visible_gpus(machine)
    if launch.local_size > len(gpus):
        raise ConfigError(
            f"torchrun: {launch.local_size} processes on this machine need as many GPUs. Got {len(gpus)}. "
            f"Use --nproc-per-node {len(gpus)}, or --device cpu."
        )
    return replace(machine, device=f"cuda:{launch.local_rank}", processes=launch.size)


def _alone(device: str) -> Machine:
    if device == "cpu" or (device == "auto" and not gpu_possible()):
        return Machine("cpu")
    kind, _, index = device.partition(":")
    if kind == "mps":
        raise ConfigError(
            "--device mps: training and tests sum in float64, which mps does not have. Use --device cpu. "
            "In Python, compress() takes networks on mps."
        )
    if device != "auto" and (kind != "cuda" or (index and not index.isdigit())):
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:N. Got '{device}'.")
    import torch

    if not torch.cuda.is_available():
        if device == "auto":
            return Machine("cpu")
        raise ConfigError(f"--device {device}: torch finds no usable GPU here. Use --device cpu.")
    if index and int(index) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: this machine has {torch.cuda.device_count()} GPU(s).")
    return Machine("cuda" if device == "auto" else device, auto=fastest_precision(int(index or 0)))


def fastest_precision(index: int) -> Precision:
    """The number format in which a GPU trains fastest.

    bfloat16 must be native: torch also emulates it, slowly, before Ampere (V100, T4). float16 needs tensor cores,
    which NVIDIA's GPUs have from compute capability 7.0 on.
    """
    import torch

    with torch.cuda.device(index):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
    return "fp16" if torch.cuda.get_device_capability(index) >= (7, 0) else "fp32"


def visible_gpus(machine: Machine) -> tuple[str, ...]:
    """The GPUs that workers are shared out to, as `gpu_variable` names them; none where one GPU was asked for."""
    if machine.device != "cuda":
        return ()
    named = os.environ.get(gpu_variable())
    if named:
        return tuple(name.strip() for name in named.split(","))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def gpu_variable() -> str:
    """The environment variable that says which GPUs a process sees."""
    return next((name for name in VISIBLE if name in os.environ), VISIBLE[-1])


def describe_environment(machine: Machine, threads: int, workers: int | None) -> dict[str, Any]:
    """Versions, device, threads and commit: what environment.json holds; workers are None on a cluster of Ray's."""
    return {
        "format": FORMAT_VERSION,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "device": _device_name(machine),
        "precision_auto": machine.auto,
        "threads_per_cell": threads,
        "workers": workers,
        "processes_per_training": machine.processes,
        "git_commit": _git_commit(),
    }


def device_in_words(machine: Machine) -> str:
    """The device with the name of the hardware, by which latencies can be compared or not."""
    return _device_name(machine) if machine.kind == "cuda" else f"{machine.device} ({_processor()})"


def instructions(device: str) -> str:
    """What of the hardware decides rounding: the widest instructions that torch uses on the CPU, or the kind of GPU.

    It is no part of a key; tables that mix several say so.
    """
    import torch

    cuda = device.partition(":")[0] == "cuda"
    return torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()


def gpu_possible() -> bool:
    """Whether a GPU's driver is installed and the environment hides no GPU; without torch."""
    hidden = os.environ.get(gpu_variable(), "0").strip() in ("", "-1")
    return not hidden and (any(Path(path).exists() for path in DRIVERS) or shutil.which("nvidia-smi") is not None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _device_name(machine: Machine) -> str:
    if machine.kind != "cuda":
        return machine.device
    import torch

    return f"{machine.device} ({torch.cuda.get_device_name(machine.device)})"


def _git_commit() -> str | None:
    """The commit of this program's source, `+changes` behind it where the checkout differs; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(c, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")
