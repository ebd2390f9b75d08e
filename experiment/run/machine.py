"""Device selection, CPU cores and GPUs, and the record of the environment."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from experiment.errors import ConfigError, StoreError
from experiment.files import read_json
from experiment.run.grid.hardware import Machine, Precision
from experiment.run.grid.keys import FORMAT_VERSION
from experiment.run.torchrun_launch import Launch, find_launch

# Files of the GPU drivers of NVIDIA (Linux, Jetson, WSL2) and AMD (ROCm).
DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
# Variables with the GPUs that a process sees; if several are set, ROCm uses the first one.
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
MAX_READERS = 16  # each holds two batches of bytes
CGROUPS = Path("/sys/fs/cgroup")
ENVIRONMENT = "environment.json"
PACKAGES = ("experiment", "torch", "torchvision", "numpy", "pandas", "matplotlib")


def find_machine(device: str) -> Machine:
    """The machine with the device of the command line; `auto` is a GPU if torch finds a usable one.

    Torch is imported only if a driver is installed, so that planning is fast elsewhere. Under torchrun, each process
    uses the GPU of its local rank.

    Raises: ConfigError: there is no such device.
    """
    launch = find_launch()
    machine = _without_torchrun(device)
    return machine if launch is None else _under_torchrun(machine, launch)


def usable_cores() -> int:
    """The number of CPU cores that this process may use: fewer than the machine has in a job or a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")  # Slurm may be set up to tell the number only
    return max(1, min(cores, int(task) if task.isdecimal() else cores, int(_time_share(cores))))


def _time_share(cores: float, of_process: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> float:
    """The cores that a control group's limit of computing time is worth, as of `docker run --cpus`; `cores` without."""
    with suppress(OSError, ValueError, StopIteration):
        lines = of_process.read_text().splitlines()
        group = root / next(line[len("0::/") :] for line in lines if line.startswith("0::/"))  # version 2
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (limit := folder / "cpu.max").is_file():
                quota, period = limit.read_text().split()
                cores = cores if quota == "max" else min(cores, int(quota) / int(period))
    return cores


def reading_processes(cells: int = 1, threads: int = 1) -> int:
    """The number of processes that read images for one cell: one per core that its threads do not use.

    Args:
        cells: computed at the same time on this machine by one command, not counting processes of torchrun.
        threads: of each cell.
    """
    launch = find_launch()
    processes = cells * (1 if launch is None else launch.local_size)
    return max(0, min(MAX_READERS, usable_cores() // processes - threads))


def _under_torchrun(machine: Machine, launch: Launch) -> Machine:
    if machine.kind != "cuda":
        return replace(machine, processes=launch.size)
    if machine.device != "cuda":
        raise ConfigError(
            f"--device {machine.device}: under torchrun every process takes a GPU of its own. Use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to select GPUs."
        )
    gpus = visible_gpus(machine)
    if launch.local_size > len(gpus):
        raise ConfigError(
            f"torchrun: {launch.local_size} processes on this machine need as many GPUs. Got {len(gpus)}. "
            f"Use --nproc-per-node {len(gpus)}, or --device cpu."
        )
    return replace(machine, device=f"cuda:{launch.local_rank}", processes=launch.size)


def _without_torchrun(device: str) -> Machine:
    if device == "cpu" or (device == "auto" and not gpu_possible()):
        return Machine("cpu")
    kind, _, index = device.partition(":")
    if kind == "mps":
        raise ConfigError(
            "--device mps: training and tests sum in float64, which mps does not support. Use --device cpu. "
            "In Python, compress() accepts networks on mps."
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
    """The fastest number format for training on a GPU.

    bfloat16 must be native: before Ampere (V100, T4), torch emulates it slowly. float16 needs tensor cores, which
    NVIDIA GPUs have from compute capability 7.0.
    """
    import torch

    with torch.cuda.device(index):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
    return "fp16" if torch.cuda.get_device_capability(index) >= (7, 0) else "fp32"


def visible_gpus(machine: Machine) -> tuple[str, ...]:
    """The GPUs to which workers are assigned, as in `gpu_variable`; none if one GPU was requested."""
    if machine.device != "cuda":
        return ()
    named = os.environ.get(gpu_variable())
    if named:
        return tuple(name.strip() for name in named.split(","))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def gpu_variable() -> str:
    """The environment variable with the GPUs that a process sees."""
    return next((name for name in VISIBLE if name in os.environ), VISIBLE[-1])


def describe_environment(machine: Machine, threads: int, workers: int | None) -> dict[str, Any]:
    """The content of environment.json. `workers` is None on a Ray cluster."""
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


def recorded_machine(folder: Path) -> Machine | None:
    """The machine of the last run, as `describe_environment` recorded it in a results folder; None if it did not."""
    with suppress(OSError, StoreError, KeyError, TypeError, AttributeError, ValueError):
        found = read_json(folder / ENVIRONMENT)
        processes, auto = int(found["processes_per_training"]), found["precision_auto"]
        if auto in get_args(Precision):
            return Machine(found["device"].partition(" ")[0], processes, auto)
    return None


def device_in_words(machine: Machine) -> str:
    """The device with the name of the hardware; latencies are comparable if it is the same."""
    return _device_name(machine) if machine.kind == "cuda" else f"{machine.device} ({_processor()})"


def instructions(device: str) -> str:
    """The hardware that decides rounding: the widest instructions that torch uses on the CPU, or the kind of GPU.

    It is not part of any key. Reports mention it if a table contains several.
    """
    import torch

    cuda = device.partition(":")[0] == "cuda"
    return torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()


def gpu_possible() -> bool:
    """Whether a GPU driver is installed and the environment does not hide the GPUs. Does not import torch."""
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
    """The git commit of this program, followed by `+changes` if the checkout is modified; None outside a checkout."""
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
