"""How well the latency of compressed networks is predicted from that of their layers, without and with correction.

    python tests/benchmark/latency_model.py --networks resnet20 vgg16_bn --batches 1 64 --threads 1 2 --csv out.csv

Thirty plans per network, batch size and number of threads: SVD and FT at fifteen keep ratios each, evenly spaced
from .9 to .15. `raw` is the error of the first prediction; `corrected` that of one which is scaled by measured over
predicted of the plan before, of the same method, as the search for a budget does. Weights are random. Nothing else
should run.
"""

import argparse
import statistics
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import torch
from rows import Row, show
from small_transformers import GPT, ViT
from torch import Tensor, nn

from experiment import compress_many
from experiment.measure.latency_model import LatencyModel, LatencyTable
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded

SHAPES = {
    "resnet20": (3, 32, 32), "vgg16_bn": (3, 32, 32), "resnet18": (3, 224, 224), "mobilenet_v2": (3, 224, 224),
}  # fmt: skip
NETWORKS = (*SHAPES, "vit", "gpt")
KEEPS = [0.9 - 0.75 * i / 14 for i in range(15)]
WIDTHS = {"network": 13, "dense_ms": 9, "corrected_median_%": 18, "corrected_worst_%": 17}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--table", type=Path, help="folder in which the latencies of layers are kept")
    parser.add_argument("--csv", type=Path)
    show(rows(parser.parse_args()), WIDTHS, parser.parse_args().csv)


def rows(a: argparse.Namespace) -> Iterator[Row]:
    for name, threads, batch in product(a.networks, a.threads, a.batches):
        torch.set_num_threads(threads)
        network, example = made(name)
        table = LatencyTable(a.table / f"{threads}.json" if a.table else None, threads)
        model = LatencyModel.of(network, example, batch, table)
        raw, corrected = errors(model, network, example)
        yield {
            "network": name, "batch": batch, "threads": threads, "dense_ms": round(model.dense_ms, 3),
            "raw_median_%": percent(statistics.median(raw)), "raw_worst_%": percent(max(raw)),
            "corrected_median_%": percent(statistics.median(corrected)), "corrected_worst_%": percent(max(corrected)),
        }  # fmt: skip


def made(name: str) -> tuple[nn.Module, Tensor]:
    with seeded("benchmark"):
        if name == "vit":
            return ViT().eval(), torch.randn(1, 3, 32, 32)
        if name == "gpt":
            return GPT(96).eval(), torch.randint(0, 96, (1, 128))
        classes = 10 if SHAPES[name][1] == 32 else 1000
        return make_network(name, {}, SHAPES[name], classes).eval(), torch.randn(1, *SHAPES[name])


def errors(model: LatencyModel, network: nn.Module, example: Tensor) -> tuple[list[float], list[float]]:
    """Relative errors of all plans' predictions: the first ones, and those corrected by the plan before."""
    raw, corrected = list[float](), list[float]()
    for method in ("SVD", "FT"):
        pairs = []
        for result in compress_many(network, method, keeps=KEEPS, example=example, progress=False):
            pairs.append((model.predict(result.network), model.measure(result.network)))
        raw += [abs(predicted / measured - 1) for predicted, measured in pairs]
        for before, (predicted, measured) in pairwise(pairs):
            corrected.append(abs(predicted * before[1] / before[0] / measured - 1))
    return raw, corrected


def percent(share: float) -> float:
    return round(100 * share, 1)


if __name__ == "__main__":
    main()
