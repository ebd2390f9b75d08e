"""Seconds and memory that compression methods take for twenty keep ratios of one network, phase by phase.

    python tests/benchmark/compression_speed.py --networks resnet20 resnet18 --methods ALDS WT --threads 2 --csv out.csv
    python tests/benchmark/compression_speed.py --networks vit_b_16 --methods WT

`kth_s` is one torch.kthvalue over all parameters of the network, in the same process: `analyse_s + plan_s` of WT, which
select the weights of all keep ratios, should take at most three times as long.

The weights are random, the keep ratios 20 between .97 and .2, evenly spaced in their logarithms. Every pair of network
and method runs in a process of its own, so that its peak memory is its own: that of the whole process, torch included;
what it had before the analysis stands beside it. A budget that a method cannot meet counts as planned.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rows import Row, show
from torch import nn
from torchvision.models import vit_b_16

from experiment.errors import InfeasibleBudget
from experiment.layers.plan import State
from experiment.measure import count, example_input
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

CIFAR, IMAGENET = ((3, 32, 32), 10, 183), ((3, 224, 224), 1000, 32)  # input shape, classes, calibration inputs
SHAPES = {"resnet20": CIFAR, "vgg16_bn": CIFAR, "resnet18": IMAGENET, "resnet50": IMAGENET, "vit_b_16": IMAGENET}
LABELS = [
    label
    for label, entry in METHODS.items()
    if entry.kind in ("lowrank", "weight", "filter") and label != "BlockPrune"  # which needs a size of blocks
]
WIDTHS = {"network": 10, "method": 18}
PHASES = ("analyse", "plan", "build", "count")


def main() -> None:
    arguments = parse()
    if arguments.alone:
        print(json.dumps(measure(arguments.networks[0], arguments.methods[0], arguments.keeps, arguments.threads)))
        return
    rows = (
        in_own_process(network, method, arguments.keeps, arguments.threads)
        for network in arguments.networks
        for method in arguments.methods
    )
    show(rows, WIDTHS, arguments.csv)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--keeps", type=int, default=20, help="how many keep ratios")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--alone", action="store_true", help="measure the first network and method in this process")
    return parser.parse_args()


def in_own_process(network: str, method: str, keeps: int, threads: int) -> Row:
    """A fresh interpreter's measurement: neither warm caches nor memory of an earlier one."""
    options = ["--networks", network, "--methods", method, "--keeps", str(keeps), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *options, "--alone"], stdout=subprocess.PIPE, check=True)
    row: Row = json.loads(done.stdout)
    return row


def measure(network: str, label: str, keeps: int, threads: int) -> Row:
    """One row of the table: seconds of every phase, of all of them, and peak memory in MiB."""
    torch.set_num_threads(threads)
    shape, classes, num_inputs = SHAPES[network]
    with seeded("benchmark"):
        made_network = vit_b_16() if network == "vit_b_16" else make_network(network, {}, shape, classes)
    state = State(made_network.eval(), example_input(shape))
    inputs = torch.randn(num_inputs, *shape, generator=generator("inputs"))
    targets = torch.randint(0, classes, (num_inputs,), generator=generator("targets"))
    method = make_method(METHODS[label], configure(METHODS[label], {}).settings)
    original = count(state.network, state.example)
    row: Row = {"network": network, "method": label, "threads": threads, "keeps": keeps}
    seconds = dict.fromkeys(PHASES, 0.0)
    before_mib, cpu = peak_mib(), time.process_time()
    with timed(seconds, "analyse"):
        made = Compressor(method, state, original, Calibration(inputs, targets), generator("benchmark"))
    infeasible = 0
    for i in range(keeps):
        keep = 0.97 * (0.2 / 0.97) ** (i / max(keeps - 1, 1))
        budget = Budget("parameters", int(keep * original.parameters), original.parameters)
        try:
            with timed(seconds, "plan"), torch.no_grad():
                plan = method.plan(made.analysis, budget)
        except InfeasibleBudget:
            infeasible += 1
            continue
        with timed(seconds, "build"):
            built = made.instantiate(plan)
        with timed(seconds, "count"):
            counted = count(built, state.example)
        assert counted.parameters <= budget.limit
    cpu = time.process_time() - cpu
    row |= {f"{phase}_s": round(seconds[phase], 3) for phase in PHASES}
    row |= {"wall_s": round(sum(seconds.values()), 3), "cpu_s": round(cpu, 3)}
    row |= {"peak_mib": peak_mib(), "before_mib": before_mib, "infeasible": infeasible}
    return row | {"kth_s": round(kth_seconds(state.network), 3)}


def kth_seconds(network: nn.Module) -> float:
    """What the median of all magnitudes takes."""
    magnitudes = torch.cat([p.detach().flatten().abs() for p in network.parameters()])
    started = time.perf_counter()
    torch.kthvalue(magnitudes, len(magnitudes) // 2)
    return time.perf_counter() - started


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add what the block takes to a phase's wall time."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] += time.perf_counter() - started


def peak_mib() -> int:
    """The most memory that this process ever held; Linux tells it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


if __name__ == "__main__":
    main()
