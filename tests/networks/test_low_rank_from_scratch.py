"""Networks of factors: their first weights against numpy, what stays as it was, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import ConfigError
from experiment.layers.factored_layers import product
from experiment.measure import count, example_input
from experiment.networks.low_rank_from_scratch import gaussian
from experiment.networks.make_network import make_network
from experiment.random_streams import seeded

DIGITS = (1, 28, 28)


def made(name: str = "lenet300_100", **settings: object) -> nn.Module:
    with seeded("test_factored"):
        return make_network(name, settings, DIGITS, 10)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_spectral_factors_are_numpys_truncated_svd_of_the_dense_start() -> None:
    dense, factored = made(), made(rank=12, factored=["fc2"])
    W = array(dense.fc2.weight)
    U, S, Vt = np.linalg.svd(W)
    assert array(product(factored.fc2)) == pytest.approx((U[:, :12] * S[:12]) @ Vt[:12], abs=1e-6)
    D, E = array(factored.fc2.decoder.weight), array(factored.fc2.encoder.weight)
    for gram in (D.T @ D, E @ E.T):  # both sides have the roots of the singular values, so their gradients compare
        assert gram == pytest.approx(np.diag(S[:12]), abs=1e-5)
    assert torch.equal(factored.fc2.decoder.bias, dense.fc2.bias)
    for name in ("fc1", "fc3"):
        assert torch.equal(factored.get_submodule(name).weight, dense.get_submodule(name).weight)


def test_it_computes_a_product_and_a_bias() -> None:
    network = made(rank=12, factored=["fc2"]).eval()
    x = torch.randn(5, 300)
    E, D = (array(network.fc2.get_submodule(name).weight) for name in ("encoder", "decoder"))
    expected = array(x) @ E.T @ D.T + array(network.fc2.decoder.bias)
    assert array(network.fc2(x)) == pytest.approx(expected, abs=1e-5)


def test_gaussian_factors_keep_the_size_of_activations() -> None:
    with seeded("gaussian"):
        U, V = gaussian(torch.empty(3000, 2000), 50)
    assert 50 * array(U).var() * array(V).var() == pytest.approx(2 / 2000, rel=0.02)
    assert array(U).var() == pytest.approx(array(V).var(), rel=0.02)
    x = np.maximum(np.random.default_rng(0).normal(size=(2000, 20)), 0)
    assert (array(U @ V) @ x).var() == pytest.approx(2 * (x**2).mean(), rel=0.1)


def test_without_patterns_all_layers_that_get_smaller_are_factored() -> None:
    network = made(rank=50)
    assert [name for name, module in network.named_children() if isinstance(module, nn.Sequential)] == ["fc1", "fc2"]
    expected = 50 * (784 + 300) + 300 + 50 * (300 + 100) + 100 + 1010
    assert count(network, example_input(DIGITS)).parameters == expected


def test_convolutions_factor_into_their_kernels_and_a_1x1_layer() -> None:
    dense, network = made("lenet5"), made("lenet5", rank=6, factored=["conv*"])
    W = array(dense.conv2.weight)
    U, S, Vt = np.linalg.svd(W.reshape(50, -1), full_matrices=False)
    assert array(product(network.conv2)) == pytest.approx(((U[:, :6] * S[:6]) @ Vt[:6]).reshape(W.shape), abs=1e-6)
    assert network.conv2.decoder.kernel_size == (1, 1)


def test_every_step_trains_both_factors() -> None:
    network = made(rank=5)
    network(torch.randn(4, *DIGITS)).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 0}, "network.settings.rank: must be at least 1. Got 0."),
        ({"rank": 5, "factored": "fc2"}, "network.settings.factored: must be a list. Got 'fc2'."),
        ({"rank": 5, "factored_init": "zeros"}, "network.settings.factored_init: "),
        ({"factored": ["fc2"]}, "network.settings.factored: has no effect without a rank."),
        ({"rank": 5, "factored": ["fc9"]}, "no layer is called 'fc9'. The layers are fc1, fc2, fc3."),
        ({"rank": 5, "factored": []}, "network.settings.factored: must not be empty. The layers are fc1, fc2, fc3."),
        ({"rank": 200, "factored": ["fc2"]}, "Got 200; 'fc2' has full rank 100."),
        ({"rank": 1000}, "no layer gets smaller with factors of rank 1000."),
        ({"ranc": 5}, "lenet300_100"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**settings)
    assert expected in str(caught.value)


def test_a_factory_that_takes_a_rank_is_given_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\n\ndef make(input_shape, output_size, rank):\n"
    text += "    return nn.Sequential(nn.Flatten(), nn.Linear(784, rank), nn.Linear(rank, output_size))\n"
    (tmp_path / "own_with_rank.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert made("own_with_rank:make", rank=7)[1].out_features == 7
