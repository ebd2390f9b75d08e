"""Patches against the layer's own output, and against torch's unfold."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from experiment.layers.sampled_patches import all_outputs, draw_places, input_patches, num_positions, outputs_at
from experiment.random_streams import generator, seeded

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
with seeded("test_patches"):
    LAYERS = {
        "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
        "stride, padding": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 6)),
        "unequal axes": (nn.Conv2d(3, 4, (3, 2), (1, 3), (2, 1), (2, 1)), (2, 3, 8, 6)),
        "dilation": (nn.Conv2d(3, 4, 3, dilation=2, padding=2), (2, 3, 7, 6)),
        "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 6)),
        "same": (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 7, 6)),
        "same, an even kernel": (nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), (2, 3, 7, 6)),
        "same, reflected": (nn.Conv2d(3, 4, (4, 3), padding="same", padding_mode="reflect"), (2, 3, 7, 6)),
        "reflect": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 7, 6)),
        "circular": (nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), (2, 3, 7, 6)),
        "replicate": (nn.Conv2d(3, 4, 3, padding=2, padding_mode="replicate"), (2, 3, 7, 6)),
        "mode without padding": (nn.Conv2d(3, 4, (1, 3), padding=(0, 1), padding_mode="reflect"), (2, 3, 7, 6)),
        "one by one": (nn.Conv2d(3, 4, 1, stride=2), (2, 3, 7, 6)),
        "one image without a batch": (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
        "linear": (nn.Linear(5, 4), (6, 5)),
        "linear on sequences": (nn.Linear(5, 4), (2, 3, 5)),
        "linear on grids": (nn.Linear(5, 4), (2, 3, 2, 5)),
        "linear on one vector": (nn.Linear(5, 4), (5,)),
    }  # fmt: skip


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[request.param]
    return layer.double(), torch.randn(shape, generator=generator("test_patches", request.param), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@torch.no_grad()
def test_weight_times_patches_is_the_layers_answer(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    y = layer(x)
    total = num_positions(y, layer)
    assert total * len(layer.weight) == y.numel()
    for most in (total, max(1, total // 3)):
        places = draw_places(total, most, generator("places"))
        patches = input_patches(x, layer, y.shape, places)
        answers = layer.weight.flatten(1) @ patches.flatten(0, 1) + layer.bias[:, None]
        torch.testing.assert_close(answers, outputs_at(y, layer, places))
        torch.testing.assert_close(answers, all_outputs(y, layer)[:, places])


def test_patches_are_those_of_unfold() -> None:
    layer, x = nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), (1, 2)), torch.randn(2, 3, 7, 6, generator=generator("unfold"))
    y = layer(x)
    expected = unfold(x, (3, 2), (1, 2), (1, 2), (2, 1))  # B, C K, positions of a sample
    found = input_patches(x, layer, y.shape, torch.arange(num_positions(y, layer)))
    assert torch.equal(found, expected.transpose(0, 1).reshape(3, 6, -1))


def test_places_are_distinct_in_order_and_all_where_there_are_few() -> None:
    assert torch.equal(draw_places(5, 5, generator("a")), torch.arange(5))
    places = draw_places(100, 30, generator("a"))
    assert torch.equal(places, draw_places(100, 30, generator("a")))
    assert len(set(places.tolist())) == 30
    assert places.tolist() == sorted(places.tolist())
    assert places[0] >= 0
    assert places[-1] < 100
