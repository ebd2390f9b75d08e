"""Top-1 without retraining of a trained residual network whose filters go together or alone (`coupled: false`).

    python tests/benchmark/uncoupled.py --weights resnet20.pt --images data/datasets/CIFAR10-jpeg \\
        --calibration calibration_indices.txt --csv uncoupled.csv

Every line is one network: its achieved share of parameters and multiply-adds, top-1 on the test images, and for
batches of `--batch-sizes` the milliseconds on the CPU, the shares of the dense network's, and whether ONNX Runtime
computes the same.
"""

import argparse
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rows import Row, show
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torchvision import datasets, transforms

import experiment as xp
from experiment.networks.make_network import make_network

SHAPE, CLASSES = (3, 32, 32), 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FOLDS = ("none", "constant", "mean")
WIDTHS = {"method": 14, "coupled": 7, "fold": 8, "refit": 5, "x_params": 8, "x_flops": 7, "top1": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", type=Path, required=True, help="a state_dict")
    parser.add_argument("--images", type=Path, required=True, help="folders train and test of classes of images")
    parser.add_argument("--calibration", type=Path, required=True, help="indices of training images, one a line")
    parser.add_argument("--methods", nargs="+", default=["FT", "SoftNet", "Global Filters"])
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.8, 0.65, 0.5])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--most", type=int, help="only every so many-th test image")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    show(rows(arguments), WIDTHS, arguments.csv)


def rows(a: argparse.Namespace) -> Iterator[Row]:
    """The dense network, then every method, coupled and not, with every way to fold what is removed."""
    network = make_network(a.network, {}, SHAPE, CLASSES)
    network.load_state_dict(torch.load(a.weights, weights_only=True))
    network.eval()
    chosen = [int(line) for line in a.calibration.read_text().split()]
    calibration, _ = images(a.images / "train", chosen)
    test, labels = images(a.images / "test", None, a.most or 1)
    dense = {} if a.no_timing else milliseconds(network, test, a.batch_sizes)
    about = {"coupled": "", "fold": "", "refit": "", "keep": 1.0, "x_params": 1.0, "x_flops": 1.0}
    unknown = {} if a.no_timing else {"onnx": ""}
    yield {"method": "dense", **about, "top1": top1(network, test, labels), **times(dense, dense), **unknown}
    for label, coupled, fold, refit in product(a.methods, (True, False), FOLDS, (False, True)):
        settings = {"coupled": coupled, "fold": fold, "refit": refit}
        for keep, result in zip(
            a.keeps,
            xp.compress_many(
                network, label, keeps=a.keeps, example=test[:1], data=calibration, progress=False, settings=settings
            ),
            strict=True,
        ):
            small = result.network
            found = {} if a.no_timing else milliseconds(small, test, a.batch_sizes)
            yield {
                "method": label, **settings, "keep": keep, "x_params": round(result.keep_parameters, 4),
                "x_flops": round(result.keep_flops, 4), "top1": top1(small, test, labels), **times(found, dense),
                **({} if a.no_timing else {"onnx": same_in_onnx(small, test[:4])}),
            }  # fmt: skip


def images(folder: Path, chosen: list[int] | None, every: int = 1) -> tuple[Tensor, Tensor]:
    """Normalised images of an image folder, and their labels."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    data = datasets.ImageFolder(str(folder), transform)
    samples = [data[i] for i in (range(0, len(data), every) if chosen is None else chosen)]
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def top1(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        found = torch.cat([network(batch).argmax(1) for batch in x.split(500)])
    return round(float((found == y).double().mean()), 4)


def milliseconds(network: nn.Module, x: Tensor, batch_sizes: list[int]) -> dict[int, float]:
    """The median time of a forward pass on one thread, for every batch size."""
    with torch.inference_mode():
        return {
            size: Timer("f(x)", globals={"f": network, "x": x[:size]}).blocked_autorange(min_run_time=0.5).median * 1e3
            for size in batch_sizes
        }


def times(found: dict[int, float], dense: dict[int, float]) -> Row:
    columns: Row = {}
    for size, time in found.items():
        columns |= {f"ms_{size}": round(time, 3), f"x_ms_{size}": round(time / dense[size], 3)}
    return columns


def same_in_onnx(network: nn.Module, x: Tensor) -> bool:
    """Whether ONNX Runtime computes what PyTorch does."""
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(network, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        return bool(np.allclose(found, network(x).numpy(), atol=1e-4))


if __name__ == "__main__":
    main()
