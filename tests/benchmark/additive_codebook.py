"""LeNet-300-100 with two values for all weights and 1 % additive corrections, by functions of one's own in L-C.

    python tests/benchmark/additive_codebook.py --data data/datasets

An example of the LC toolkit (https://github.com/UCMerced-ML/LC-model-compression), which reports a test error of
2.17 %. The other ones are `param/mnist/lc/lenet300_100.yaml` and `lenet300_100_ranks.yaml`, whose schedule this has,
too. The reference network is trained for 40 epochs. Ten minutes on one core.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import MNIST

from experiment import LC
from experiment.layers.codebooks import fit_codebook
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded

CORRECTED = 2662  # weights, 1 %
VALID = 6000
ROUNDS = 30  # of the alternation between codebook and corrections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/datasets"))
    parser.add_argument("--epochs", type=int, default=5, help="of an L-step")
    a = parser.parse_args()
    torch.set_num_threads(1)
    (x, y), test = (of(a.data, train) for train in (True, False))
    train, valid = (x[VALID:], y[VALID:]), (x[:VALID], y[:VALID])
    with seeded("benchmark"):
        network = make_network("mlp", {"activation": "Tanh"}, (1, 28, 28), 10)
        trained(network, *train)
    print(f"reference: {error(network, *test):.2f} %", flush=True)
    per_epoch = -(-len(train[0]) // 256)
    lc = LC(
        network, (compressed, lambda small: small), train=train, valid=valid, steps=41, mu_init=9e-5,
        iterations=a.epochs * per_epoch, iterations_first=2 * a.epochs * per_epoch, batch_size=256,
        optimizer_kwargs={"lr": 0.09, "momentum": 0.9, "nesterov": True},
    )  # fmt: skip
    print(f"one codebook and 1 % corrections: {error(lc.run(), *test):.2f} %")


def of(data: Path, train: bool) -> tuple[Tensor, Tensor]:
    part = MNIST(str(data), train=train)
    return part.data[:, None].float() / 255 - 0.1307, part.targets


def trained(network: nn.Module, x: Tensor, y: Tensor, epochs: int = 40) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30])
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[some]), y[some]).backward()
            optimizer.step()
        schedule.step()
    network.eval()


def compressed(network: nn.Module) -> nn.Module:
    """W = Q + S: alternately the best two values for W - S, and the largest 1 % of W - Q."""
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
    w = torch.cat([weight.detach().flatten() for weight in weights])
    rest, before = torch.zeros_like(w), float("inf")
    for _ in range(ROUNDS):
        table, bounds = fit_codebook(w - rest, 2)
        codes = table[torch.bucketize(w - rest, bounds)]
        left = w - codes
        rest = torch.zeros_like(w)
        largest = left.abs().topk(CORRECTED).indices
        rest[largest] = left[largest]
        now = float((left - rest).square().sum())
        if now >= before:
            break
        before = now
    with torch.no_grad():
        for weight, part in zip(weights, (codes + rest).split([weight.numel() for weight in weights]), strict=True):
            weight.copy_(part.reshape(weight.shape))
    return network


def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((network(x).argmax(1) != y).float().mean())


if __name__ == "__main__":
    main()
