"""Re-estimated BatchNorm statistics: against numpy, layer by layer, and where nothing is to change."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers import recalibrate_batchnorm as module
from experiment.layers.build import build, write_whole
from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.group_data import kept_of
from experiment.layers.plan import Kept, Plan
from experiment.layers.recalibrate_batchnorm import dense_moments, recalibrate
from experiment.random_streams import generator, seeded


class Blocks(nn.Module):
    """Three convolutions with BatchNorm, the second one within a residual sum, and a normalised linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.bn4 = nn.Linear(8, 7), nn.BatchNorm1d(7)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.bn2(self.conv2(x))).relu()
        x = self.bn3(self.conv3(x)).relu().mean((2, 3))
        return self.fc2(self.bn4(self.fc1(x)).relu())


ORDER = ("bn1", "bn2", "bn3", "bn4")


def network() -> Blocks:
    with seeded("test_recalibrate"):
        net = Blocks()
        for norm in norms(net).values():
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return net.eval()


def images(number: int = 12) -> Tensor:
    return torch.randn(number, 3, 9, 9, generator=generator("test_recalibrate"))


def norms(net: nn.Module) -> dict[str, nn.BatchNorm2d | nn.BatchNorm1d]:
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}


def perturbed(net: Blocks) -> Blocks:
    """The network as if compressed: other convolutions and linear layers, the same statistics."""
    other = copy.deepcopy(net)
    with seeded("test_recalibrate", "perturbed"), torch.no_grad():
        for layer in (m for m in other.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
            layer.weight.add_(0.3 * torch.randn(layer.weight.shape))
    return other


def arriving(net: nn.Module, x: Tensor, name: str) -> np.ndarray:
    """What a BatchNorm is given, channels first and float64: (C, everything else)."""
    found = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        net(x)
    handle.remove()
    (arrived,) = found
    return np.moveaxis(arrived.double().numpy(), 1, 0).reshape(arrived.shape[1], -1)


def corrected(
    compressed: nn.Module, net: nn.Module, x: Tensor, kept: Mapping[str, Kept] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The formula with numpy, one pass a layer from the first to the last; changes `compressed`."""
    expected = {}
    for name in ORDER:
        norm, old = compressed.get_submodule(name), net.get_submodule(name)
        side = (kept or {}).get(name, Kept()).out
        rows = slice(None) if side is None else list(side)
        c, d = arriving(compressed, x, name), arriving(net, x, name)[rows]
        mean = old.running_mean.double().numpy()[rows] + c.mean(1) - d.mean(1)
        var = (old.running_var.double().numpy()[rows] + old.eps) * (c.var(1) + old.eps) / (d.var(1) + old.eps) - old.eps
        norm.running_mean.copy_(torch.from_numpy(mean))
        norm.running_var.copy_(torch.from_numpy(var))
        expected[name] = (mean, var)
    return expected


def agree(compressed: nn.Module, expected: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for name, (mean, var) in expected.items():
        norm = compressed.get_submodule(name)
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_a_computation_layer_by_layer() -> None:
    net, x = network(), images()
    compressed = perturbed(net)
    expected = corrected(copy.deepcopy(compressed), net, x)
    before = copy.deepcopy(compressed.state_dict())

    recalibrate(compressed, dense_moments(net, x), {})

    agree(compressed, expected)
    changed = {n for n, tensor in compressed.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {f"{name}.running_{what}" for name in ORDER for what in ("mean", "var")}


def test_later_layers_see_earlier_ones_corrected() -> None:
    """Statistics taken with all earlier layers uncorrected are others: the order matters, and is tested above."""
    net, x = network(), images()
    compressed = perturbed(net)
    first = arriving(compressed, x, "bn3").mean(1) - arriving(net, x, "bn3").mean(1)
    recalibrate(compressed, dense_moments(net, x), {})
    moved = (compressed.bn3.running_mean - net.bn3.running_mean).numpy()
    assert np.abs(moved - first).max() > 1e-2
    np.testing.assert_allclose(
        moved, arriving(compressed, x, "bn3").mean(1) - arriving(net, x, "bn3").mean(1), atol=1e-5
    )


def test_sliced_channels_are_compared_with_their_own() -> None:
    net, x = network(), images()
    groups = channel_groups(net, x[:1])
    kept = kept_of(groups, [range(g.size) if g.exempt else range(g.size // 3, g.size) for g in groups])
    compressed = build(net, Plan(kept=kept)).eval()
    write_whole(compressed, net, Plan(kept=kept))
    assert {len(norm.running_mean) for norm in norms(compressed).values()} == {4, 5, 6}  # cut, each by a third
    expected = corrected(copy.deepcopy(compressed), net, x, kept)

    recalibrate(compressed, dense_moments(net, x), kept)

    agree(compressed, expected)


def test_an_unchanged_network_keeps_its_statistics_bit_for_bit() -> None:
    net = network()
    compressed, before = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    recalibrate(compressed, dense_moments(net, images()), {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in compressed.state_dict().items())


def test_the_dense_network_and_all_modes_and_hooks_stay_as_they_were() -> None:
    net, compressed = network().train(), perturbed(network()).train()
    before = copy.deepcopy(net.state_dict())
    recalibrate(compressed, dense_moments(net, images()), {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks for m in [*net.modules(), *compressed.modules()])


def test_by_hand() -> None:
    """Inputs -1 and 1: the mean falls from 3 to 1, the variance from 4 to 1; eps stands on both sides."""
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.5)).eval()
    with torch.no_grad():
        net[0].weight.fill_(2.0), net[0].bias.fill_(3.0)
        net[1].running_mean.fill_(10.0), net[1].running_var.fill_(4.0)
    compressed = copy.deepcopy(net)
    with torch.no_grad():
        compressed[0].weight.fill_(1.0), compressed[0].bias.fill_(1.0)

    recalibrate(compressed, dense_moments(net, torch.tensor([[-1.0], [1.0]])), {})

    assert compressed[1].running_mean.item() == 10 + (1 - 3)
    assert compressed[1].running_var.item() == pytest.approx((4 + 0.5) * (1 + 0.5) / (4 + 0.5) - 0.5)


def test_a_channel_that_dies_or_wakes_up_keeps_a_variance_that_is_none_of_nan_and_negative() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        net[1].running_var.copy_(torch.tensor([1.0, 0.0]))
    compressed = copy.deepcopy(net)
    with torch.no_grad():
        compressed[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    x = torch.randn(50, 2, generator=generator("test_recalibrate"))

    recalibrate(compressed, dense_moments(net, x), {})

    dead, awake = compressed[1].running_var.tolist()
    assert 0 <= dead < 1e-4
    assert awake == pytest.approx(x[:, 1].var(correction=0).item(), rel=1e-3)


class Shared(nn.Module):
    """A BatchNorm called twice, one without running statistics, one never called, and one to be corrected."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.twice, self.batch = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        self.never, self.once = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.once(self.batch(self.twice(self.conv(self.twice(x)))))


def test_layers_called_more_than_once_or_without_statistics_are_left_alone() -> None:
    with seeded("test_recalibrate"):
        net = Shared().eval()
    compressed = copy.deepcopy(net)
    with torch.no_grad():
        compressed.conv.weight[0] *= 2
        compressed.conv.weight[1, 0] = 0
    before = copy.deepcopy(compressed.state_dict())
    recalibrate(compressed, dense_moments(net, images()), {})
    changed = {n for n, tensor in compressed.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed <= {"once.running_mean", "once.running_var"}
    assert changed


def test_memory_is_bounded_by_taking_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 5 * 6 * 9 * 9)  # of bn1, five images
    net, x = network(), images()
    dense = dense_moments(net, x)
    assert torch.equal(dense.inputs, x[:5])
    few = dense_moments(net, x[:5])
    assert all(torch.equal(dense.layers[name].mean, few.layers[name].mean) for name in ORDER)


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(CompressionError, match="recalibrate has no effect: the network has no BatchNorm"):
        dense_moments(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images())


def test_values_that_are_not_finite_are_named() -> None:
    net, compressed = network(), network()
    with torch.no_grad():
        compressed.conv2.weight[0, 0] = torch.inf
    with pytest.raises(CompressionError, match="'bn2' receives NaN"):
        recalibrate(compressed, dense_moments(net, images()), {})
