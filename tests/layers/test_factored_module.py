"""What a forward pass reads of a layer beside calling it, before and after compression."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiment import compress, load_network, save_network
from experiment.layers.factored_layers import FactoredConv, FactoredLayer, FactoredLinear, make_layer, write_factors
from experiment.layers.masks import bake_masks
from experiment.layers.plan import Factors
from experiment.random_streams import generator

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
        "transposed", "output_padding")  # fmt: skip


class Reads(nn.Module):
    """Computes with what it reads of its layers; every use gives what calling the layer gives."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.conv = nn.Conv2d(4, 12, 3, stride=2, padding=1)
        self.up, self.down = nn.Linear(12 * 16, 32), nn.Linear(32, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        conv, up, down = self.conv, self.up, self.down
        h = conv(x)
        if self.use == "convolution":
            again = functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
            h = (h + again) / 2
        if self.use == "numbers of the convolution":
            size = [
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(
                    x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
                )
            ]
            h = h.reshape(-1, conv.out_channels, *size) if conv.in_channels == x.shape[1] else h * torch.nan
        h = functional.relu(h).flatten(1)
        if self.use == "dtype and device":
            h = h.to(up.weight.device, up.weight.dtype)
        again = functional.linear(h, up.weight, up.bias) if self.use == "weight" else up(h)
        h = functional.relu((up(h) + again) / 2)
        if self.use == "features":
            h = h.view(-1, down.in_features)
        out = down(h)
        if self.use == "no bias":
            out = out if down.bias is None else out - down.bias
        return out.reshape(-1, down.out_features) if self.use == "features" else out


USES = ("dtype and device", "features", "weight", "no bias", "convolution", "numbers of the convolution")
FAMILIES: dict[str, dict[str, Any]] = {
    "SVD": {"keep": 0.5}, "ALDS": {"keep": 0.5}, "PCA": {"keep": 0.5}, "Messi3": {"keep": 0.6}, "WT": {"keep": 0.5},
    "FT": {"keep": 0.5}, "Quantize": {"dtype": "int8"},
    "Compose": {"schemes": [{"name": "SVD", "settings": {}}, {"name": "Quantize"}], "keep": 0.5},
}  # fmt: skip


def inputs(samples: int, *shape: int) -> Tensor:
    return torch.randn(samples, *shape, generator=generator("test", "factored"))


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_passes_read_their_layers(family: str) -> None:
    x = inputs(32, 4, 8, 8)
    torch.manual_seed(0)
    whole = Reads("")
    for use in USES:
        network = Reads(use)
        network.load_state_dict(whole.state_dict())
        if family == "FT" and use in ("weight", "convolution"):
            continue  # channels that meet a bare weight stay
        made = compress(network, family, example=x, data=x, **FAMILIES[family]).network
        called = Reads("")
        called.__dict__["_modules"] = made._modules
        torch.testing.assert_close(made(x), called.eval()(x), msg=f"{family}, {use}")


@pytest.mark.parametrize("groups", [1, 2])
def test_a_linear_pair_answers_for_its_layer(groups: int) -> None:
    layer = nn.Linear(6, 5)
    pair = make_layer(layer, Factors(2, groups, bias=True))
    assert isinstance(pair, FactoredLinear)
    for p in pair.parameters():
        nn.init.normal_(p, generator=generator("test", groups))
    assert (pair.in_features, pair.out_features, pair.weight.shape) == (6, 5, layer.weight.shape)
    assert set(pair.state_dict()) == {"encoder.weight", "decoder.weight", "decoder.bias"}
    x = inputs(3, 6)
    torch.testing.assert_close(functional.linear(x, pair.weight, pair.bias), pair(x))
    functional.linear(x, pair.weight).sum().backward()
    assert all(p.grad is not None for n, p in pair.named_parameters() if n.endswith("weight"))
    half = copy.deepcopy(pair).to(torch.bfloat16)
    assert half.weight.dtype == torch.bfloat16
    assert not hasattr(pair, "kernel_size")


@pytest.mark.parametrize("folding", range(4))
@pytest.mark.parametrize("padding", ["same", (2, 1)])
def test_a_convolution_pair_answers_for_its_layer(folding: int, padding: Any) -> None:
    stride = 1 if padding == "same" else (2, 3)
    layer = nn.Conv2d(4, 6, (3, 5), stride, padding, dilation=(1, 2), padding_mode="reflect", bias=False)
    pair = make_layer(layer, Factors(3, 2, folding))
    assert isinstance(pair, FactoredConv)
    for p in pair.parameters():
        nn.init.normal_(p, generator=generator("test", folding))
    assert {name: getattr(pair, name) for name in CONV} == {name: getattr(layer, name) for name in CONV}
    assert pair.bias is None
    layer.weight.data.copy_(pair.weight)
    x = inputs(2, 4, 12, 14)
    torch.testing.assert_close(layer(x), pair(x), rtol=1e-4, atol=1e-4)


def test_pairs_follow_when_they_are_compressed_again() -> None:
    """Numbers are those of the factors as they are, sliced or factored once more."""
    x = inputs(4, 4, 8, 8)
    torch.manual_seed(1)
    once = compress(Reads("features"), "SVD", keep=0.6, example=x).network
    for method in ("FT", "SVD"):
        twice = compress(once, method, keep=0.7, example=x).network
        for module in twice.modules():
            if isinstance(module, FactoredLinear):
                assert module.weight.shape == (module.out_features, module.in_features)
        assert twice(x).shape == (4, 10)


@pytest.mark.parametrize("family", ["SVD", "ALDS"])
def test_a_network_that_reads_its_factors_is_copied_traced_exported_and_stored(family: str, tmp_path: Path) -> None:
    x = inputs(2, 4, 8, 8)
    torch.manual_seed(2)
    original = Reads("weight").eval()
    result = compress(original, family, keep=0.5, example=x)
    network = result.network
    assert any(isinstance(m, FactoredLayer) for m in network.modules())
    expected = network(x)
    save_network(result, tmp_path / "n.pt")
    stored = io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    others = {
        "copied": copy.deepcopy(network),
        "loaded": load_network(tmp_path / "n.pt", network=original),
        "pickled": torch.load(stored, weights_only=False),
        "exported": torch.export.export(network, (x,)).module(),
        "baked": bake_masks(network),
    }
    for name, other in others.items():
        torch.testing.assert_close(other(x), expected, msg=name)
    assert all(".encoder." in n or ".decoder." in n or n in original.state_dict() for n in network.state_dict())


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_pairs_are_scripted_and_traced() -> None:
    pair = make_layer(nn.Linear(6, 5), Factors(2, 2, bias=True))
    for p in pair.parameters():
        nn.init.normal_(p, generator=generator("test", "script"))
    x = inputs(3, 6)
    torch.testing.assert_close(torch.jit.script(pair)(x), pair(x))
    torch.testing.assert_close(torch.jit.trace(pair, x)(x), pair(x))


def test_sliced_layers_say_their_real_sizes() -> None:
    x = inputs(2, 4, 8, 8)
    torch.manual_seed(3)
    made = compress(Reads("features"), "FT", keep=0.5, example=x).network
    conv, up, down = (made.get_submodule(name) for name in ("conv", "up", "down"))
    assert (conv.out_channels, conv.in_channels) == conv.weight.shape[:2]
    assert conv.out_channels < 12
    assert (up.out_features, up.in_features) == up.weight.shape
    assert (down.out_features, down.in_features) == down.weight.shape
    assert up.in_features == conv.out_channels * 16


def test_write_factors_reaches_the_weight() -> None:
    pair = make_layer(nn.Linear(4, 3), Factors(1))
    write_factors(pair, torch.ones(1, 3, 1), torch.arange(4.0).reshape(1, 1, 4))
    torch.testing.assert_close(pair.weight, torch.arange(4.0).expand(3, 4))
