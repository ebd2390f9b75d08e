"""Milliseconds a batch takes through decomposed networks, beside what their counts promise.

    python tests/benchmark/latency.py --network resnet18 --methods ALDS SVD-Energy --keeps 0.5 0.25 --csv latency.csv
    python tests/benchmark/latency.py --shapes          # one convolution: how groups slow its encoder

The weights are random, for ImageNet's shapes. Every line is one network: `x flops` and `x latency` are shares of the
dense one's, measured in the same process, memory format and number of threads. A share of the latency above that of the
multiply-adds is what the smaller kernels, the extra layer and its grouped convolution cost.
"""

import argparse
import copy
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from rows import Row, show
from torch import nn
from torch.utils.benchmark import Timer

from experiment.errors import InfeasibleBudget
from experiment.layers.factored_layers import make_layer
from experiment.layers.plan import Factors, State
from experiment.measure import count, example_input
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

SHAPE, CLASSES = (3, 224, 224), 1000
WIDTHS = {"method": 12, "budget": 10, "ms": 8, "iqr_ms": 7}


def main() -> None:
    arguments = parse()
    rows = shapes(arguments) if arguments.shapes else networks(arguments)
    show(rows, WIDTHS, arguments.csv)


def parse() -> argparse.Namespace:
    labels = [label for label, entry in METHODS.items() if entry.kind == "lowrank"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--methods", nargs="+", choices=labels, default=["ALDS", "SVD-Energy"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--quantities", nargs="+", choices=["parameters", "flops"], default=["parameters", "flops"])
    parser.add_argument("--round-to", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--min-run-time", type=float, default=1.0, help="seconds a measurement")
    parser.add_argument("--shapes", action="store_true", help="time single layers instead of networks")
    parser.add_argument("--csv", type=Path)
    return parser.parse_args()


def networks(a: argparse.Namespace) -> Iterator[Row]:
    """The dense network, then every method, keep ratio, budget and rounding; each for all batch sizes and threads."""
    with seeded("benchmark"):
        state = State(make_network(a.network, {}, SHAPE, CLASSES).eval(), example_input(SHAPE))
    original = count(state.network, state.example)
    dense: dict[tuple[int, int], float] = {}
    plain = {
        "method": "dense",
        "keep": 1.0,
        "budget": "",
        "round_to": "",
        "groups": "",
        "x_params": 1.0,
        "x_flops": 1.0,
    }
    for (batch, threads), times in timings(state.network, a).items():
        dense[batch, threads] = float(times["ms"])
        yield {**plain, "batch": batch, "threads": threads, **times, "x_latency": 1.0}
    for label, round_to in product(a.methods, a.round_to):
        method = make_method(METHODS[label], configure(METHODS[label], {"round_to": round_to}).settings)
        made = Compressor(method, state, original, None, generator("benchmark"))
        for keep, quantity in product(a.keeps, a.quantities):
            about = {"method": label, "keep": keep, "budget": quantity, "round_to": round_to}
            try:
                compressed = made.compress(keep, quantity)
            except InfeasibleBudget as error:
                print(f"{about}: {error}")
                continue
            groups = sorted(f.groups for f in compressed.plan.factors.values())
            about |= {
                "groups": groups[len(groups) // 2],
                "x_params": round(compressed.count.parameters / original.parameters, 3),
                "x_flops": round(compressed.count.flops / original.flops, 3),
            }
            for (batch, threads), times in timings(compressed.network, a).items():
                share = round(float(times["ms"]) / dense[batch, threads], 3)
                yield {**about, "batch": batch, "threads": threads, **times, "x_latency": share}


def shapes(a: argparse.Namespace) -> Iterator[Row]:
    """One 3x3 convolution decomposed in 1 to all groups, each with the rank that halves its multiply-adds.

    Here `round_to` rounds the rank itself, the outputs of one group, down.
    """
    for (filters, size), batch, threads in product(
        [(64, 56), (128, 28), (256, 14), (512, 7)], a.batch_sizes, a.threads
    ):
        with seeded("benchmark"):
            conv = nn.Conv2d(filters, filters, 3, padding=1, bias=False).eval()
        x = images(batch, (filters, size, size), a)
        whole = filters * filters * 9
        dense = milliseconds(conv, x, threads, a)
        for groups, round_to in product((1, 2, 4, 8, 16, 32, 64, 128, 256, 512), a.round_to):
            a_rank = groups * filters + 9 * filters
            rank = min(whole // 2 // a_rank, 9 * filters // groups) // round_to * round_to
            if groups > filters or rank < 1:
                continue
            layer = make_layer(conv, Factors(rank, groups)).eval()
            for parameter in layer.parameters():
                nn.init.normal_(parameter)
            encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
            with torch.no_grad():
                inner = encoder(x)
            parts = [float(milliseconds(part, y, threads, a)["ms"]) for part, y in ((encoder, x), (decoder, inner))]
            yield {
                "filters": filters, "size": size, "batch": batch, "threads": threads, "groups": groups,
                "round_to": round_to, "rank": rank, "inner": rank * groups, "x_flops": round(rank * a_rank / whole, 3),
                "dense_ms": dense["ms"], "encoder_ms": parts[0], "decoder_ms": parts[1],
                "x_latency": round(sum(parts) / float(dense["ms"]), 3),
                "encoder_gmac_s": gmacs(encoder, inner, parts[0]), "decoder_gmac_s": gmacs(decoder, inner, parts[1]),
            }  # fmt: skip


def gmacs(part: nn.Module, output: torch.Tensor, ms: float) -> float:
    """Thousand million multiply-adds a second; both factors have the output's grid."""
    places = output.shape[0] * output.shape[2] * output.shape[3]
    return round(part.get_parameter("weight").numel() * places / ms / 1e6, 1)


def timings(network: nn.Module, a: argparse.Namespace) -> dict[tuple[int, int], dict[str, float]]:
    network = copy.deepcopy(network)
    return {
        (batch, threads): milliseconds(network, images(batch, SHAPE, a), threads, a)
        for batch, threads in product(a.batch_sizes, a.threads)
    }


def images(batch: int, shape: tuple[int, ...], a: argparse.Namespace) -> torch.Tensor:
    x = torch.randn(batch, *shape, generator=generator("images"))
    return x.to(memory_format=torch.channels_last) if a.channels_last else x


def milliseconds(network: nn.Module, x: torch.Tensor, threads: int, a: argparse.Namespace) -> dict[str, float]:
    """Median and interquartile range of a forward pass."""
    if a.channels_last:
        network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        timer = Timer("network(x)", globals={"network": network, "x": x}, num_threads=threads)
        measured = timer.blocked_autorange(min_run_time=a.min_run_time)
    return {"ms": round(measured.median * 1e3, 3), "iqr_ms": round(measured.iqr * 1e3, 3)}


if __name__ == "__main__":
    main()
