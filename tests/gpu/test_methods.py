"""Every method makes the same network on a GPU as on a CPU, up to rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import CompressionResult, compress
from experiment.errors import ExperimentError
from experiment.layers.masks import named_masks
from experiment.methods import METHODS
from experiment.random_streams import generator, seeded

pytestmark = pytest.mark.gpu

SETTINGS: dict[str, dict[str, Any]] = {  # required ones
    "BlockPrune": {"block_size": (2, 2)},
    "Compose": {"schemes": [{"name": "Prune", "settings": {"density": 0.7}}, {"name": "FT"}]},
    "Mix": {"points": 2, "images": 8},
}
ALIKE = 0.02  # of parameters and mask elements may differ: rounding decides between almost equal scores
CLOSE = 0.05  # of the largest output, where networks have the same form


def make() -> tuple[nn.Module, Tensor, Tensor]:
    with seeded("methods"):
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(24 * 16, 40), nn.ReLU(), nn.Linear(40, 10),
        )  # fmt: skip
    x = torch.randn(64, 3, 16, 16, generator=generator("x"))
    return network.eval(), x, torch.randint(0, 10, (64,), generator=generator("y"))


def made_on(device: torch.device | str, label: str) -> CompressionResult:
    network, x, y = (part.to(device) for part in make())
    fixed = getattr(METHODS[label].settings, "fixed_size", False) is True
    keep = {} if fixed else {"keep": 0.5}
    return compress(network, label, example=x[:1], data=(x, y), progress=False, settings=SETTINGS.get(label), **keep)


@pytest.mark.parametrize("label", sorted(METHODS))
def test_same_network(label: str, device: torch.device) -> None:
    try:
        expected = made_on("cpu", label)
    except ExperimentError as error:
        with pytest.raises(type(error)):
            made_on(device, label)
        return
    found = made_on(device, label)
    assert {tensor.device.type for tensor in found.network.state_dict().values()} == {device.type}
    assert found.parameters == pytest.approx(expected.parameters, rel=ALIKE)
    assert found.flops == pytest.approx(expected.flops, rel=ALIKE)
    masks, expected_masks = named_masks(found.network), named_masks(expected.network)
    assert masks.keys() == expected_masks.keys()
    shapes, expected_shapes = ({n: t.shape for n, t in r.network.state_dict().items()} for r in (found, expected))
    if shapes != expected_shapes:
        return  # ranks or channels differ by rounding, within ALIKE
    for name, mask in expected_masks.items():
        assert float((masks[name].cpu() != mask).float().mean()) <= ALIKE
    _, x, _ = make()
    with torch.inference_mode():
        outputs, wanted = found.network(x.to(device)).cpu(), expected.network(x)
    same = all(bool((masks[name].cpu() == mask).all()) for name, mask in expected_masks.items())
    if same:
        torch.testing.assert_close(outputs, wanted, rtol=0, atol=CLOSE * float(wanted.abs().max()))
