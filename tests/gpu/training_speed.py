"""Images a second in training: the engine, a bare loop over ready-made batches, and a loop made for speed."""

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from device_loop import DEVICE_LOOP, device_loop
from torch import nn

from experiment.networks.make_network import make_network
from experiment.random_streams import seeded

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmark"))

import throughput as loops

Row = dict[str, Any]
Emit = Callable[[Row], None]
Loop = Callable[[], int]  # gives the number of images
ROUNDS = 3
TRAININGS = (  # network, precision, whether compiled; in order of importance
    ("resnet20", "bf16", False), ("resnet18", "bf16", False), ("resnet20", "bf16", True), ("resnet18", "fp32", False),
    ("resnet20", "fp32", False), ("resnet18", "bf16", True), ("resnet18", "fp16", False), ("resnet20", "fp16", False),
)  # fmt: skip


def throughput(device: str, quick: bool, emit: Emit) -> None:
    """Images a second of every loop, in several networks and number formats."""
    batch, batches = (16, 4) if quick else (256, 100)
    images = loops.load_images(Path("absent"), batch * batches, torch.device(device))
    measure_in_turns({"data alone": lambda: data_alone(images, batch)}, {"batch": batch}, emit)
    if torch.device(device).type != "cuda":
        compile_without_kernels()
    for name, precision, compiled in TRAININGS[:: 2 if quick else 1][: 2 if quick else None]:
        about: Row = {"network": name, "precision": precision, "batch": batch}
        a = Namespace(batch_size=batch, precision=precision, channels_last=precision != "fp32", device=device,
                      epochs=1 if quick else 2)  # fmt: skip
        for alike in compiled_loops(name, images, a) if compiled else [plain_loops(name, images, a)]:
            measure_in_turns(alike, about, emit)


def data_alone(images: Any, batch: int) -> int:
    """An epoch of augmented batches without a network."""
    return sum(len(y) for _, y in images.batches(batch, stream=("data",), channels_last=True))


def compile_without_kernels() -> None:
    """Building kernels for a CPU takes minutes; tracing shows that the code runs."""
    compiler = torch.compile
    torch.compile = lambda model, **options: compiler(model, backend="aot_eager")  # type: ignore[assignment]


def plain_loops(name: str, images: Any, a: Namespace) -> dict[str, Loop]:
    device = torch.device(a.device)
    a.compiled = False
    found = {
        "engine": loops.our_loop(fresh(name, device), images, a, device),
        "bare": loops.bare_loop(fresh(name, device), images, a, device),
    }
    if a.precision != "fp32":
        found[DEVICE_LOOP] = device_loop(fresh(name, device), images, a, device, compiled=False)
    return found


def compiled_loops(name: str, images: Any, a: Namespace) -> Iterator[dict[str, Loop]]:
    """Each by itself: one must not start with what torch.compile made for another, so that they cannot take turns."""
    device = torch.device(a.device)
    for mode in ("reduce-overhead", True):
        a.compiled = mode
        torch.compiler.reset()
        yield {f"engine, compile: {str(mode).lower()}": loops.our_loop(fresh(name, device), images, a, device)}
    torch.compiler.reset()
    yield {f"{DEVICE_LOOP}, compiled": device_loop(fresh(name, device), images, a, device, compiled=True)}


def fresh(name: str, device: torch.device) -> nn.Module:
    with seeded("benchmark"):
        return make_network(name, {}, (3, 32, 32), 10).to(device)


def measure_in_turns(alike: Mapping[str, Loop], about: Row, emit: Emit) -> None:
    """Emit the median of each loop's rounds, or its error. All warm up before the first round, and then take turns."""
    found: dict[str, list[tuple[float, int]]] = {what: [] for what in alike}
    errors: dict[str, str] = {}
    for _ in range(1 + ROUNDS):
        for what in [what for what in alike if what not in errors]:
            emit({"running": ", ".join([what, *(f"{key} {value}" for key, value in about.items())])})
            try:
                found[what].append(seconds(alike[what]))
            except Exception as error:  # of one loop: the others go on
                errors[what] = f"{type(error).__name__}: {str(error)[:300]}"
    for what, turns in found.items():
        row = {**about, "loop": what}
        if what in errors:
            emit({**row, "error": errors[what]})
        else:
            rate = statistics.median(count / took for took, count in turns[1:])
            emit({**row, "images_per_s": round(rate), "first_s": round(turns[0][0], 1)})


def seconds(loop: Loop) -> tuple[float, int]:
    started = time.perf_counter()
    count = loop()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, count
