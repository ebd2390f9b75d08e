"""Images a second of the training loop against a bare loop over ready-made batches of the same network.

    python tests/benchmark/throughput.py --network resnet20 --precision bf16 --channels-last --threads 2

The bare loop has its batches in memory, normalised and in the right memory format: forward, loss, backward, optimizer
step, nothing else. The training loop reads uint8 images, crops, flips and normalises each, moves the learning rate and
keeps its account. The two take turns, so that whatever else the machine does slows both. Target: 0.90 or more.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from experiment.datasets.image_data import Images, Transforms
from experiment.datasets.image_folder import load as load_folder
from experiment.datasets.in_memory import MemoryImages, prepare
from experiment.datasets.raw_images import Pixels
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded
from experiment.training.loop import TrainingLoop
from experiment.training.processor import use_threads
from experiment.training.settings import SchedulerSpec, TrainSettings

TRANSFORMS = Transforms(
    train=(("Pad", {"padding": 4}), ("RandomCrop", {"size": 32}), ("RandomHorizontalFlip", {})),
    final=(("ToTensor", {}), ("Normalize", {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]})),
)
OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def main() -> None:
    arguments = parse()
    use_threads(arguments.threads)
    device = torch.device(arguments.device)
    images = load_images(arguments.data, arguments.batch_size * arguments.batches, device)
    with seeded("benchmark"):
        network = make_network(arguments.network, {}, (3, 32, 32), 10).to(device)
    ours = our_loop(network, images, arguments, device)
    bare = bare_loop(network, images, arguments, device)
    ours(), bare()  # warm up
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(arguments.rounds):
        order = [("ours", ours), ("bare", bare)]
        for name, loop in order if number % 2 else order[::-1]:
            started = time.perf_counter()
            count = loop()
            rates[name].append(count / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bare"], strict=True))
    print(
        f"{arguments.network}, {arguments.precision}{', channels-last' if arguments.channels_last else ''}, batch "
        f"{arguments.batch_size}, {arguments.threads} threads, {arguments.device}, {arguments.rounds} rounds: "
        f"training loop {medians['ours']:,.0f} images/s, bare loop {medians['bare']:,.0f} images/s, "
        f"ratio of the medians {medians['ours'] / medians['bare']:.3f}, median of the rounds' ratios {ratio:.3f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data/datasets"), help="folder with CIFAR10-jpeg, if you have it"
    )
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_const", const=True, default=False, dest="compiled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=10, help="a round")
    parser.add_argument("--epochs", type=int, default=1, help="of the training loop in a round")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def load_images(data: Path, num_images: int, device: torch.device) -> Images:
    """The first training images of CIFAR10-jpeg, or random ones of that size where it is absent."""
    if (data / "CIFAR10-jpeg").is_dir():
        items = load_folder("ImageFolder", data, True, {"root": "CIFAR10-jpeg"}, 10).items
        assert isinstance(items, Pixels)
    else:
        images = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator("images"))
        items = Pixels(images, torch.randint(0, 10, (num_images,), generator=generator("labels")))
    pipelines = [(*TRANSFORMS.train, *TRANSFORMS.final), (*TRANSFORMS.test, *TRANSFORMS.final)]
    prepared = prepare(items, pipelines, device)
    assert prepared is not None
    chosen = torch.randperm(len(items), generator=generator("choice"))[:num_images]
    return MemoryImages(*prepared, items.labels.to(device), chosen.to(device))


def our_loop(network: nn.Module, images: Images, a: argparse.Namespace, device: torch.device) -> Callable[[], int]:
    """A training; gives the number of images."""
    settings = TrainSettings(
        num_epochs=a.epochs,
        batch_size=a.batch_size,
        optimizer_kwargs=OPTIMIZER,
        schedulers=(
            SchedulerSpec("MultiStepLR", {"gamma": 0.1}, {"milestones": [91, 136]}),
            SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 5}),
        ),
        precision=a.precision,
        channels_last=a.channels_last,
        compiled=a.compiled,
    )

    def run() -> int:
        records = TrainingLoop(network, images, settings, valid=None, stream=("benchmark",), device=device).run()
        return sum(record.images for record in records)

    return run


def bare_loop(network: nn.Module, images: Images, a: argparse.Namespace, device: torch.device) -> Callable[[], int]:
    """As many steps on batches made beforehand; gives the number of images."""
    batches = list(images.batches(a.batch_size, stream=("benchmark",), channels_last=a.channels_last))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[a.precision]

    def run() -> int:
        network.to(memory_format=torch.channels_last if a.channels_last else torch.contiguous_format)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), **OPTIMIZER, fused=True)
        scaler = torch.amp.GradScaler(device.type, enabled=a.precision == "fp16")
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=dtype, enabled=a.precision != "fp32"):
                loss = nn.functional.cross_entropy(network(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        float(loss.detach())
        return sum(len(y) for _, y in batches)

    return run


if __name__ == "__main__":
    main()
