"""Networks for segmentation are compressed like others: through concatenation, enlargement and dictionaries."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from experiment import compress, load_network, save_network
from experiment.inputs import scored
from experiment.measure import count, example_input
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded


def made(name: str, settings: dict[str, object], shape: tuple[int, int, int]) -> tuple[nn.Module, Tensor]:
    with seeded(name):
        network = make_network(name, settings, shape, 5).eval()
    return network, torch.rand(2, *shape, generator=generator("x"))


def data_for(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.repeat(2, 1, 1, 1), torch.randint(0, 5, (4, *x.shape[2:]), generator=generator("y"))


@pytest.mark.parametrize("method", ["ALDS", "SVD", "PCA", "KLDS", "L-Rank", "FT", "ThiNet", "PFP", "Global Filters"])
def test_a_unet_is_compressed_by_every_family(method: str) -> None:
    network, x = made("unet", {"width": 4, "depth": 2}, (1, 20, 20))
    small = compress(network, method, keep=0.6, example=x, data=data_for(x))
    assert 0.4 < small.keep_parameters <= 0.6
    assert small.network(x).shape == (2, 5, 20, 20)
    with FlopCounterMode(display=False) as counter:
        small.network(x[:1])
    assert small.flops == counter.get_total_flops() / 2
    assert small.parameters == sum(p.numel() for p in small.network.parameters())


@pytest.mark.parametrize("method", ["FT"])
def test_the_auxiliary_head_is_compressed_counted_and_stored(method: str, tmp_path: Path) -> None:
    network, x = made("deeplabv3_mobilenet_v3_large", {}, (3, 33, 33))
    small = compress(network, method, keep=0.5, example=x)
    with FlopCounterMode(display=False) as counter:
        outputs = small.network(x[:1])
    assert {key: tuple(value.shape) for key, value in outputs.items()} == dict.fromkeys(("out", "aux"), (1, 5, 33, 33))
    assert small.flops == counter.get_total_flops() / 2
    head = small.layers[small.layers["layer"].str.startswith("aux_classifier")]
    assert (head["parameters"] < head["parameters_before"]).any()
    save_network(small, tmp_path / "small.pt")
    loaded = load_network(tmp_path / "small.pt", network=network)
    assert all(torch.equal(loaded(x)[key], small.network(x)[key]) for key in ("out", "aux"))


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_counts_with_and_without_the_auxiliary_head(name: str) -> None:
    meta, shape = models.get_model_weights(name)["COCO_WITH_VOC_LABELS_V1"].meta, (3, 520, 520)
    with torch.device("meta"):
        both, alone = (make_network(name, {"auxiliary": aux}, shape, 21) for aux in (True, False))
    assert set(alone(torch.zeros(2, *shape, device="meta"))) == {"out"}
    counted, without = (count(network, example_input(shape, "meta")) for network in (both, alone))
    assert counted.flops / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)
    head = both.get_submodule("aux_classifier")
    assert counted.parameters - without.parameters == sum(p.numel() for p in head.parameters())
    assert scored(both(torch.zeros(2, *shape, device="meta"))).shape == (2, 21, 520, 520)
