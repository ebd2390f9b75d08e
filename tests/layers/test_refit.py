"""Decoders by least squares: against numpy, exact where they can be, and better than before where they cannot."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers import refit as module
from experiment.layers.build import build, write_whole
from experiment.layers.factored_layers import product, write_factors
from experiment.layers.plan import Factors, Plan
from experiment.layers.refit import RIDGE, RIDGE_OF_FEW, refit
from experiment.methods.lowrank.spectra import LayerSpectra
from experiment.random_streams import generator, seeded


def randn(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("test_refit", name))


def cnn() -> nn.Sequential:
    with seeded("test_refit"):
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding="same", padding_mode="reflect"), nn.ReLU(), nn.Flatten(),
            nn.Linear(192, 10),
        ).eval()  # fmt: skip


def decomposed(dense: nn.Module, factors: dict[str, Factors]) -> nn.Module:
    """With the truncated SVDs of the slices."""
    plan = Plan(factors=factors)
    compressed = build(dense, plan).eval()
    write_whole(compressed, dense, plan)
    for name, f in factors.items():
        U, V = LayerSpectra(dense.get_submodule(name).weight).factors(f.rank, f.groups, f.folding)
        write_factors(compressed.get_submodule(name), U, V, f.folding)
    return compressed


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def given(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module is given when x passes."""
    found = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
    with torch.no_grad():
        network(x)
    handle.remove()
    (arrived,) = found
    return arrived


def regression(H: np.ndarray, Y: np.ndarray, before: np.ndarray) -> np.ndarray:
    """argmin ||Y - U H||^2 + lambda ||U - before||^2, the ridge as rows of the least squares problem."""
    ridge = np.sqrt((RIDGE + RIDGE_OF_FEW * len(H) / H.shape[1]) * (H**2).sum() / len(H))
    rows, right = np.vstack([H.T, ridge * np.eye(len(H))]), np.vstack([Y.T, ridge * before.T])
    return np.linalg.lstsq(rows, right, rcond=None)[0].T


CASES = list(itertools.product((1, 2), (0, 1, 2, 3)))


@pytest.mark.parametrize(("groups", "folding"), CASES)
def test_spoilt_decoder_is_mended(groups: int, folding: int) -> None:
    """The dense layer is what the factors once stood for: an error in the decoder alone can be mended exactly."""
    factors = {"2": Factors(3, groups, folding, False), "4": Factors(4, groups, folding, True)}
    compressed, x = decomposed(cnn(), factors), randn(60, 4, 8, 8)
    dense = cnn()
    with torch.no_grad():
        for name in factors:
            dense.get_submodule(name).weight.copy_(product(compressed.get_submodule(name)))
        expected, start = dense(x), copy.deepcopy(compressed)
        for name in factors:
            start.get_submodule(name).decoder.weight.mul_(1 + 0.3 * randn(1, name=name).sign())
        bad = start(x)
    for _ in range(3):  # what the ridge leaves is mended by repeating
        refit(start, dense, list(factors), x, seed=1)
    assert (start(x) - expected).norm() < 1e-3 * (bad - expected).norm()


@pytest.mark.parametrize("number", [30, 3], ids=["more places", "more unknowns"])
def test_linear_layer_is_the_ridge_regression_of_numpy(number: int) -> None:
    with seeded("test_refit", "linear"):
        dense = nn.Sequential(nn.Linear(12, 9)).eval()
    x = randn(number, 12)
    compressed = decomposed(dense, {"0": Factors(4, 2, 0, True)})
    H, W = given(compressed, "0.decoder", x), compressed[0].decoder
    before, Y = (
        W.weight.detach().double().numpy().copy(),
        dense[0].weight.detach().double().numpy() @ x.double().numpy().T,
    )
    expected = regression(H.detach().double().numpy().T, Y, before)

    refit(compressed, dense, ["0"], x, seed=0)

    np.testing.assert_allclose(W.weight.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(W.bias, dense[0].bias)


def test_later_layers_see_what_the_earlier_ones_mended() -> None:
    dense, x = cnn(), randn(20, 4, 8, 8)
    factors = {"0": Factors(3, 1, 0, True), "2": Factors(4, 2, 0)}
    compressed = decomposed(dense, factors)
    before = compressed[2].decoder.weight.detach().double().flatten(1).numpy().copy()
    untouched = given(compressed, "2.decoder", x)
    refit(compressed, dense, list(factors), x, seed=0)

    H = given(compressed, "2.decoder", x)  # of the first layer as it is now
    assert not torch.allclose(H, untouched, atol=1e-3)
    with torch.no_grad():
        Y = dense[2](given(dense, "2", x))
    H_NP, Y_FP = (np.moveaxis(t.double().numpy(), 1, 0).reshape(t.shape[1], -1) for t in (H, Y))
    found = compressed[2].decoder.weight.detach().flatten(1).numpy()
    np.testing.assert_allclose(found, regression(H_NP, Y_FP, before), rtol=1e-3, atol=1e-4)


def all_factors() -> dict[str, Factors]:
    return {
        "0": Factors(3, 2, 0, True),
        "2": Factors(6, 1, 1),
        "4": Factors(4, 3, 0, True),
        "7": Factors(4, 2, 0, True),
    }


def test_outputs_on_other_inputs_come_closer() -> None:
    dense, others = cnn(), randn(100, 4, 8, 8, name="held out")
    compressed = decomposed(dense, all_factors())
    with torch.no_grad():
        before = (compressed(others) - dense(others)).square().mean()
        refit(compressed, dense, list(all_factors()), randn(200, 4, 8, 8), seed=0)
        after = (compressed(others) - dense(others)).square().mean()
    assert after < 0.8 * before


def test_nothing_changes_but_decoder_weights() -> None:
    dense, compressed = cnn().train(), decomposed(cnn(), all_factors()).train()
    whole, before = state(dense), state(compressed)
    refit(compressed, dense, ["0", "4"], randn(20, 4, 8, 8), seed=0)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in dense.state_dict().items())
    changed = {name for name, tensor in compressed.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.decoder.weight", "4.decoder.weight"}
    modules = [*dense.modules(), *compressed.modules()]
    assert all(m.training and not m._forward_pre_hooks and not m._forward_hooks for m in modules)
    assert all(p.requires_grad and p.is_leaf for p in compressed.parameters())


def test_exact_factors_and_layers_without_input_stay() -> None:
    dense = cnn()
    with torch.no_grad():
        dense[2].weight.zero_()
        dense[2].weight[:, 0] = 1.0
        dense[0].weight[0], dense[0].bias[0] = 0, -1  # so that the only channel that counts is dead
    compressed = decomposed(dense, {"0": Factors(8, 4, 0, True), "2": Factors(1, 8, 0)})
    before = state(compressed)
    refit(compressed, dense, ["0", "2"], randn(20, 4, 8, 8), seed=0)
    torch.testing.assert_close(compressed[0].decoder.weight, before["0.decoder.weight"], rtol=1e-3, atol=1e-4)
    assert torch.isfinite(compressed[2].decoder.weight).all()
    with torch.no_grad():
        dense[0].weight.zero_(), dense[0].bias.fill_(-1)
    compressed = decomposed(dense, {"2": Factors(2, 2, 0)})
    before = state(compressed)
    refit(compressed, dense, ["2"], randn(20, 4, 8, 8), seed=0)
    assert torch.equal(compressed[2].decoder.weight, before["2.decoder.weight"])


class Odd(nn.Module):
    """A layer used twice, one given its input by name, one never used, one that sees other samples once compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.named, self.never, self.some = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.named(input=self.twice(self.twice(x)).relu_()).relu_()
        return self.some(x[x.sum(-1) > x.sum(-1).median() + 1e-3 * x.sum()])


def test_only_layers_used_once_on_the_same_samples_are_fitted() -> None:
    with seeded("test_refit", "odd"):
        dense = Odd().eval()
    names = ["twice", "named", "never", "some"]
    compressed = decomposed(dense, {name: Factors(2, 1, 0, True) for name in names})
    before, x = state(compressed), randn(40, 8)
    assert len(compressed(x)) != len(dense(x))
    refit(compressed, dense, names, x, seed=0)
    changed = {name for name, tensor in compressed.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"named.decoder.weight"}


def test_a_network_that_is_one_layer() -> None:
    with seeded("test_refit", "bare"):
        dense = nn.Linear(8, 8)
    compressed, x = decomposed(dense, {"": Factors(2, 1, 0, True)}), randn(40, 8)
    x = x * torch.linspace(0.1, 3, 8)
    with torch.no_grad():
        before = (compressed(x) - dense(x)).norm()
        refit(compressed, dense, [""], x, seed=0)
        assert (compressed(x) - dense(x)).norm() < before


def test_memory_is_bounded_by_taking_fewer_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = cnn(), randn(20, 4, 8, 8)
    one, other = (decomposed(dense, all_factors()) for _ in range(2))
    refit(one, dense, list(all_factors()), x[:5], seed=0)
    monkeypatch.setattr(module, "MOST_VALUES", 5 * 8 * 8 * 8)  # of the first layer's answers, five images
    refit(other, dense, list(all_factors()), x, seed=0)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_few_places_are_enough_and_drawn_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACES", 300)
    dense, x = cnn(), randn(40, 4, 8, 8)
    fitted = []
    for seed in (0, 0, 1):
        compressed = decomposed(dense, {"0": Factors(2, 1, 0, True)})
        refit(compressed, dense, ["0"], x, seed)
        fitted.append(compressed[0].decoder.weight)
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])
    torch.testing.assert_close(fitted[0], fitted[2], rtol=0.2, atol=0.1)


def test_values_that_are_not_finite_are_named() -> None:
    dense, compressed = cnn(), decomposed(cnn(), all_factors())
    with torch.no_grad():
        compressed[2].encoder.weight[0] = torch.inf
    with pytest.raises(CompressionError, match="layer '2': its inputs in the compressed network"):
        refit(compressed, dense, list(all_factors()), randn(5, 4, 8, 8), seed=0)
    assert not any(m._forward_pre_hooks for m in compressed.modules())
