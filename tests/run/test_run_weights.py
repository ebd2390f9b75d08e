"""network.pt: what is written comes back equal; what is foreign, damaged or hostile is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from experiment.errors import StoreError
from experiment.layers.build import build
from experiment.layers.plan import Factors, Kept, Plan
from experiment.run.weights import read_weights, rebuild, save_weights
from experiment.streams import seeded


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
        kept={
            "0": Kept(out=(0, 2, 5)),
            "1": Kept(out=(0, 2, 5), inputs=(0, 2, 5)),
            "3": Kept(inputs=(0, 2, 5)),
        }
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


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('executed', 'w').write('x')",))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "network.pt"
    torch.save({"specification": Evil(), "state_dict": {}}, path)
    with pytest.raises(StoreError, match="more than plain data"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StoreError):
        read_weights(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "network.pt"
    save_weights(path, network(), Plan(), None)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match="network.pt"):
        read_weights(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    save_weights(path, nn.Linear(3, 2), Plan(), None)
    with pytest.raises(StoreError, match="weights are not those of this network"):
        rebuild(network(), *read_weights(path), path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.save({"specification": {"format": 99}, "state_dict": {}}, path)
    with pytest.raises(StoreError, match="format version 99"):
        read_weights(path)
