"""Small networks with what methods stumble over, each with an example input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiment.layers.plan import State
from experiment.random_streams import generator, seeded

Maker = Callable[[], State]


class Residual(nn.Module):
    """A stem, a block whose shortcut is a 1x1 convolution with stride, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(y + self.shortcut(x)).mean((2, 3)))


class Mixed(nn.Module):
    """Frames folded into the batch, a depthwise and a transposed convolution, a concatenation, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
        self.wide = nn.Sequential(nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU())
        self.shared = nn.Conv2d(20, 20, 1)
        self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.head = nn.Conv2d(23, 16, 3, bias=False)
        self.fc = nn.Linear(16, 6)

    def forward(self, clips: Tensor) -> Tensor:
        images = clips.flatten(0, 1)
        x = self.wide(self.depthwise(self.stem(images)))
        x = self.shared(torch.relu(self.shared(x)))
        up = self.up(input=nn.functional.avg_pool2d(images, 4))
        x = torch.relu(self.head(torch.cat([up, x], 1)))
        return self.fc(x.mean((2, 3))).unflatten(0, clips.shape[:2]).mean(1)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip


def _sequences() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 6, bias=False))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (_cnn, (1, 3, 8, 8)),
    "residual": (Residual, (1, 3, 8, 8)),
    "sequences": (_sequences, (1, 5, 12)),
    "mixed": (Mixed, (1, 2, 3, 8, 8)),
}


@pytest.fixture(params=["residual", "sequences"])
def state(request: pytest.FixtureRequest) -> State:
    """A network of convolutions and one of linear layers, with random weights and statistics, and an example input."""
    return make_state(request.param)


@pytest.fixture(scope="session")
def state_of() -> Callable[[str], State]:
    """The same by name."""
    return make_state


def make_state(name: str) -> State:
    make, shape = NETWORKS[name]
    with seeded("tests/methods", name):
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return State(network.eval(), torch.randn(shape, generator=generator("tests/methods", name)))
