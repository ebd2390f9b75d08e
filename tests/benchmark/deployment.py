"""Whether compressed networks are really smaller and faster, and the same wherever they are loaded.

    python tests/benchmark/deployment.py --networks resnet20 vgg16_bn --methods FT PFP --keeps 0.5 0.2 --csv out.csv
    python tests/benchmark/deployment.py --keeps 0.5 --quantity flops --round-to 8 --batch-sizes 1 64

Every network, with random weights, is compressed, saved, rebuilt by a fresh process that reads the file with torch's
`weights_only=True`, and exported to ONNX and run by onnxruntime. `elsewhere` and `onnx` are the largest differences
from the network in this process, as shares of the largest output. `exact` says that what is counted on the network that
came back is what was planned. `x ms` are shares of the dense network's latency; it needs the extra `onnx`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from compression_speed import CIFAR, IMAGENET
from rows import Row, show
from torch import Tensor, nn

from experiment import compress_many, load_network, save_network
from experiment.errors import InfeasibleBudget
from experiment.layers.masks import bake_masks
from experiment.measure import count, measure_latency
from experiment.methods import METHODS
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

SHAPES = {
    **dict.fromkeys(["resnet20", "vgg16_bn", "densenet22", "wrn16_8"], CIFAR),
    **dict.fromkeys(["mobilenet_v2", "resnet50"], IMAGENET),
}
WIDTHS = {"network": 12, "method": 8, "budget": 10, "x_params": 8, "mib": 7, "elsewhere": 9, "onnx": 7, "exact": 7}


def main() -> None:
    arguments = parse()
    if arguments.rebuild:
        path, name, outputs = arguments.rebuild
        np.save(outputs, answers(load_network(path, network=dense(name)), inputs(name, 2)))
        return
    rows = (row for name in arguments.networks for row in measure(name, arguments))
    show(rows, WIDTHS, arguments.csv)


def parse() -> argparse.Namespace:
    labels = [label for label, entry in METHODS.items() if entry.kind not in ("none", "quantization")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=labels, default=["FT", "PFP"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.2])
    parser.add_argument("--quantity", choices=["parameters", "flops"], default="parameters")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=32, help="random ones, to calibrate with")
    parser.add_argument("--min-run-time", type=float, default=1.0, help="seconds a latency is measured")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--rebuild", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str, a: argparse.Namespace) -> Iterator[Row]:
    """The dense network's row, then one a method and keep ratio."""
    torch.set_num_threads(a.threads)
    shape, classes, _ = SHAPES[name]
    network = dense(name)
    original = count(network, inputs(name, 1))
    ms = latencies(network, shape, a)
    whole = {f"ms_{b}": ms[b] for b in ms} | {f"x_{b}": 1.0 for b in ms}
    yield describe(name, "dense", 1.0, network, network, a) | whole
    data = inputs(name, a.images), torch.randint(0, classes, (a.images,), generator=generator("targets"))
    for method in a.methods:
        settings = {"round_to": a.round_to} if hasattr(METHODS[method].settings, "round_to") else {}
        results = compress_many(
            network, method, keeps=a.keeps, example=inputs(name, 1), data=data, budget=a.quantity, **settings
        )
        for keep in a.keeps:
            try:
                result = next(results)
            except InfeasibleBudget as error:
                print(f"{name} {method} {keep}: {error}")
                break
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "network.pt")
                save_network(result, file)
                row = describe(name, method, keep, network, result.network, a, file)
                found = count(load_network(file, network=dense(name)), inputs(name, 1))
            limit = keep * (original.parameters if a.quantity == "parameters" else original.flops)
            planned = (result.parameters, result.flops)
            assert planned[a.quantity == "flops"] <= limit
            row["exact"] = planned == (found.parameters, found.flops)
            compressed = latencies(result.network, shape, a)
            row |= {f"ms_{b}": compressed[b] for b in ms} | {f"x_{b}": round(compressed[b] / ms[b], 3) for b in ms}
            yield row


def describe(
    name: str,
    label: str,
    keep: float,
    network: nn.Module,
    made: nn.Module,
    a: argparse.Namespace,
    file: Path | None = None,
) -> Row:
    """What is said of one network, apart from its latency."""
    original, counted = count(network, inputs(name, 1)), count(made, inputs(name, 1))
    x = inputs(name, 2)
    expected = answers(made, x)
    return {
        "network": name, "method": label, "keep": keep, "budget": a.quantity, "round_to": a.round_to,
        "x_params": round(counted.parameters / original.parameters, 3),
        "x_flops": round(counted.flops / original.flops, 3),
        "mib": round(file.stat().st_size / 2**20, 2) if file else "",
        "elsewhere": distance(elsewhere(file, name), expected) if file else "",
        "onnx": distance(by_onnx(made, x), expected),
        "exact": "",
    }  # fmt: skip


def dense(name: str) -> nn.Module:
    shape, classes, _ = SHAPES[name]
    with seeded("benchmark"):
        return make_network(name, {}, shape, classes).eval()


def inputs(name: str, number: int) -> Tensor:
    return torch.randn(number, *SHAPES[name][0], generator=generator("inputs"))


def answers(network: nn.Module, x: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network.eval()(x).numpy()


def elsewhere(file: Path, name: str) -> np.ndarray:
    """The outputs of the network that a fresh interpreter makes of the file."""
    outputs = file.with_name("outputs.npy")
    subprocess.run([sys.executable, __file__, "--rebuild", file, name, outputs], check=True)
    return np.load(outputs)


def by_onnx(network: nn.Module, x: Tensor) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        torch.onnx.export(bake_masks(network).eval(), (x,), file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def distance(found: np.ndarray, expected: np.ndarray) -> str:
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.0e}"


def latencies(network: nn.Module, shape: tuple[int, ...], a: argparse.Namespace) -> dict[int, float]:
    """Median milliseconds of every batch size."""
    network = bake_masks(network).eval()
    return {b: round(measure_latency(network, shape, b, a.threads, a.min_run_time).median_ms, 1) for b in a.batch_sizes}


if __name__ == "__main__":
    main()
