"""The response to noise, against the same figures written down again."""

import numpy as np
import pytest
import torch
from torch import nn

from experiment.datasets.python_samples import PairData
from experiment.errors import DataError
from experiment.random_streams import generator
from experiment.tasks.classification import TASK
from experiment.training.noise_response import noise_response


def linear(weights: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    return layer


def test_figures_are_those_of_the_paper() -> None:
    x = torch.randn(150, 3)
    reference, network = linear(torch.eye(3)), linear(torch.eye(3) + 0.5 * torch.randn(3, 3))
    targets = x.argmax(1)
    images = PairData("x", (x, targets), torch.device("cpu"))
    first, second = noise_response(network.train(), reference, images, TASK, [0.3, 2.0], seed=4)
    assert network.training
    noise = torch.cat([2 * torch.rand(n, 3, generator=generator("noise", 4, i)) - 1 for i, n in ((0, 100), (1, 50))])
    for found, eps in ((first, 0.3), (second, 2.0)):
        noisy = (x + eps * noise).numpy()
        a, b = noisy @ network.weight.detach().numpy().T, noisy
        soft = [np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (a, b)]
        clean = (x @ network.weight.T).argmax(1) == targets
        assert found["eps"] == eps
        assert found["agreement"] == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
        assert found["distance"] == pytest.approx(np.sqrt(((soft[0] - soft[1]) ** 2).sum(1)).mean(), rel=1e-5)
        wrong = (a.argmax(1) != targets.numpy()).mean()
        assert found["excess_error"] == pytest.approx(wrong - (1 - clean.double().mean()))
    (same,) = noise_response(reference, reference, images, TASK, [1.0], seed=0)
    assert (same["agreement"], same["distance"]) == (1, 0)
    assert same["excess_error"] > 0


def test_token_ids_get_no_noise() -> None:
    images = PairData(
        "x", (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)), torch.device("cpu")
    )
    with pytest.raises(DataError, match="one tensor of numbers"):
        noise_response(nn.Identity(), nn.Identity(), images, TASK, [0.1], seed=0)
