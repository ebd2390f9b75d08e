"""Whole layers that lost input channels, fitted by least squares: against numpy, exact where the others suffice."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.layers.channels.find_groups import channel_groups
from experiment.layers.channels.fold_constants import Folded, fold_means
from experiment.layers.channels.group_data import kept_of
from experiment.layers.channels.slicing import slice_channels
from experiment.layers.plan import Kept
from experiment.layers.refit import RIDGE, RIDGE_OF_FEW, refit
from experiment.random_streams import generator, seeded


def randn(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("test_refit_whole", name))


def cut(dense: nn.Module, kept: dict[str, Kept]) -> nn.Module:
    compressed = copy.deepcopy(dense)
    slice_channels(compressed, kept)
    return compressed


def regression(H: np.ndarray, left: np.ndarray) -> np.ndarray:
    """argmin ||left - D H||^2 + lambda ||D||^2, the ridge as rows of the least squares problem."""
    ridge = np.sqrt((RIDGE + RIDGE_OF_FEW * len(H) / H.shape[1]) * (H**2).sum() / len(H))
    rows, right = np.vstack([H.T, ridge * np.eye(len(H))]), np.vstack([left.T, np.zeros((len(H), len(left)))])
    return np.linalg.lstsq(rows, right, rcond=None)[0].T


def chain() -> tuple[nn.Sequential, dict[str, Kept]]:
    with seeded("test_refit_whole"):
        dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    kept = {"0": Kept((0, 2, 3, 5, 7)), "2": Kept((1, 2, 4, 6), (0, 2, 3, 5, 7)), "4": Kept(None, (1, 2, 4, 6))}
    return dense, kept


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("intercepts", [False, True])
def test_it_is_the_regression_of_numpy_on_the_rows_that_stay(intercepts: bool) -> None:
    dense, kept = chain()
    compressed, x = cut(dense, kept), randn(50, 6)
    W, b = numbers(compressed[2].weight).copy(), numbers(compressed[2].bias).copy()
    H = numbers(torch.relu(compressed[0](x))).T
    left = numbers(dense[2](torch.relu(dense[0](x))))[:, [1, 2, 4, 6]].T - b[:, None] - W @ H
    if intercepts:
        change = regression(H - H.mean(1, keepdims=True), left - left.mean(1, keepdims=True))
        shift = left.mean(1) - change @ H.mean(1)
    else:
        change, shift = regression(H, left), 0.0

    folded = {"2": Folded(compressed[2].bias, 1, torch.zeros(4))}
    refit(compressed, dense, ["2"], x, 0, kept=kept, folded=folded, intercepts=intercepts)

    np.testing.assert_allclose(numbers(compressed[2].weight), W + change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numbers(compressed[2].bias), b + shift, rtol=1e-4, atol=1e-5)


def test_channels_that_others_make_up_for_are_replaced_exactly() -> None:
    """Two channels are copies of others: the readers can compute the same without them."""
    with seeded("test_refit_whole", "copies"):
        dense = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3, bias=False),
            nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4),
        ).eval()  # fmt: skip
    with torch.no_grad():
        dense[0].weight[5:7] = dense[0].weight[1:3]
        dense[0].bias[5:7] = dense[0].bias[1:3]
    rows = (0, 1, 2, 3, 4, 7)
    kept, x = {"0": Kept(rows), "1": Kept(rows), "3": Kept(None, rows)}, randn(64, 3, 6, 6)
    compressed = cut(dense, kept)
    with torch.no_grad():
        before = (compressed(x) - dense(x)).norm()
        for _ in range(3):  # what the ridge leaves is mended by repeating
            refit(compressed, dense, ["3"], x, 0, kept=kept)
        assert (compressed(x) - dense(x)).norm() < 1e-3 * before


def test_a_constant_behind_the_layer_is_fitted_with_the_weights() -> None:
    """The mean stands in the running mean of the BatchNorm behind: answers are right on average after it."""
    with seeded("test_refit_whole", "norm"):
        dense = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Flatten(),
            nn.Linear(20, 2),
        ).eval()  # fmt: skip
    x = randn(60, 3, 6, 6)
    groups = channel_groups(dense, x[:1])
    kept = kept_of(groups, [(0, 1, 2, 3), *[range(group.size) for group in groups[1:]]])
    errors = []
    for intercepts in (False, True):
        compressed = cut(dense, kept)
        folded = fold_means(compressed, dense, x, groups, kept)
        assert folded["2"].sign == -1
        refit(compressed, dense, ["2"], x, 0, kept=kept, folded=folded, intercepts=intercepts)
        errors.append((compressed[:4](x) - dense[:4](x)).detach())
    assert errors[1].square().mean() < errors[0].square().mean()
    assert errors[1].mean((0, 2, 3)).abs().max() < 1e-4


def test_without_an_intercept_what_stands_behind_is_not_learned_twice() -> None:
    dense, kept = chain()
    compressed, x = cut(dense, kept), randn(50, 6)
    target = dense[2](torch.relu(dense[0](x)))[:, [1, 2, 4, 6]].detach()
    behind = torch.tensor([1.0, -2.0, 3.0, 0.5])
    folded = {"2": Folded(torch.zeros(4), -1, behind)}
    left = numbers(target - behind - compressed[2](torch.relu(compressed[0](x)))).T
    expected = numbers(compressed[2].weight) + regression(numbers(torch.relu(compressed[0](x))).T, left)
    refit(compressed, dense, ["2"], x, 0, kept=kept, folded=folded)
    np.testing.assert_allclose(numbers(compressed[2].weight), expected, rtol=1e-4, atol=1e-5)
    assert not folded["2"].place.any()


def test_later_layers_see_what_the_earlier_ones_mended() -> None:
    dense, kept = chain()
    compressed, x = cut(dense, kept), randn(50, 6)
    alone = cut(dense, kept)
    refit(compressed, dense, ["2", "4"], x, 0, kept=kept)
    refit(alone, dense, ["2"], x, 0, kept=kept)
    refit(alone, dense, ["4"], x, 0, kept=kept)
    torch.testing.assert_close(compressed[4].weight, alone[4].weight)
    with torch.no_grad():
        assert (compressed(x) - dense(x)).norm() < (cut(dense, kept)(x) - dense(x)).norm()
