"""network.pt: what is written comes back equal; what is foreign, damaged or hostile is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiment import compress, load_network, save_network
from experiment.errors import StoreError
from experiment.layers.build import build
from experiment.layers.plan import Factors, Kept, Plan
from experiment.random_streams import seeded
from experiment.run.disk.network_file import read_weights, rebuild, save_weights


def network() -> nn.Sequential:
    with seeded("test"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.Flatten(),
            nn.Linear(96, 5),
        ).eval()


PLANS = {
    "nothing": Plan(),
    "mask": Plan(masks={"3.weight": torch.arange(432).reshape(6, 8, 3, 3) % 3 == 0}),
    "factors": Plan(factors={"3": Factors(rank=2, groups=2, bias=True), "5": Factors(rank=3, bias=True)}),
    "factors of which one is masked": Plan(
        factors={"3": Factors(rank=2, bias=True)},
        masks={"3.encoder.weight": torch.arange(144).reshape(2, 8, 3, 3) % 2 == 0},
    ),
    "channels": Plan(
        kept={"0": Kept(out=(0, 2, 5)), "1": Kept(out=(0, 2, 5), inputs=(0, 2, 5)), "3": Kept(inputs=(0, 2, 5))}
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_saved_network_comes_back_equal(tmp_path: Path, name: str) -> None:
    original = network()
    with seeded("weights"):
        compressed = build(original, PLANS[name]).eval()
        for parameter in compressed.parameters():
            nn.init.normal_(parameter, std=0.1)
    save_weights(tmp_path / "network.pt", compressed, PLANS[name], None)
    loaded = rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path)
    x = torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)
    assert torch.equal(loaded(x), compressed(x))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    save_weights(path, nn.Linear(3, 2), Plan(), None)
    with pytest.raises(StoreError, match="weights do not fit this network"):
        rebuild(network(), *read_weights(path), path)


@pytest.mark.parametrize("method", ["SVD", "FT", "WT"])
def test_a_network_of_another_width_is_another_network(tmp_path: Path, method: str) -> None:
    def of(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(width, 4)
        )

    save_network(compress(of(12), method, keep=0.5, example=torch.randn(1, 3, 5, 5)), tmp_path / "x.pt")
    with pytest.raises(StoreError, match="x.pt: .*(not the one that was compressed|do not fit this network)") as caught:
        load_network(tmp_path / "x.pt", network=of(8))
    assert len(str(caught.value)) < 2000


def test_a_network_compressed_twice_goes_into_the_first_result(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
    first = compress(net, "SVD", keep=0.7, example=x)
    second = compress(first.network, "WT", keep=0.7, example=x)
    save_network(second, tmp_path / "twice.pt")
    with pytest.raises(StoreError, match="compressed twice, the first result"):
        load_network(tmp_path / "twice.pt", network=net)
    torch.testing.assert_close(load_network(tmp_path / "twice.pt", network=first.network)(x), second.network(x))
