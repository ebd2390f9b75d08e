"""Messi: planted subspaces, errors against numpy, the encoder's zeros, its count, and that nothing depends on luck."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.layers.build import expand
from experiment.layers.masks import named_masks
from experiment.layers.plan import State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.lowrank.messi import assign_columns, subspace_factors
from experiment.random_streams import generator, seeded

StateOf = Callable[[str], State]


def compressor(state: State, label: str = "Messi3", seed: int = 0, **settings: int) -> Compressor:
    entry = METHODS[label]
    original = count(state.network, state.example)
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, original, None, generator("test_messi", seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("test_messi", seed, *shape), dtype=torch.float64)


def squared_error(points: np.ndarray, owner: np.ndarray, rank: int) -> float:
    """What the best subspaces of the given partition leave, by numpy."""
    parts = [points[owner == z] for z in np.unique(owner)]
    return sum(float((np.linalg.svd(part, compute_uv=False)[rank:] ** 2).sum()) for part in parts)


@pytest.mark.parametrize(("num", "rank", "features"), [(3, 1, 6), (3, 2, 10), (5, 2, 16), (2, 3, 9)])
def test_planted_subspaces_are_found(num: int, rank: int, features: int) -> None:
    points = torch.cat([normal(12, rank, seed=z) @ normal(rank, features, seed=z) for z in range(num)])
    shuffle = torch.randperm(len(points), generator=generator("shuffle"))
    planted = torch.arange(num).repeat_interleave(12)[shuffle]
    found = assign_columns(points[shuffle], num, rank, generator("planted"), starts=20, alternations=20)
    assert len({(int(a), int(b)) for a, b in zip(planted, found, strict=True)}) == num  # one to one
    assert squared_error(points[shuffle].numpy(), found.numpy(), rank) < 1e-20


@pytest.mark.parametrize("shape", [(60, 8), (60, 30), (20, 40), (7, 5), (9, 100)])
def test_never_worse_than_one_subspace_of_that_rank(shape: tuple[int, int]) -> None:
    points = normal(*shape)
    for num, rank in itertools.product((2, 3, 5), (1, 2, 3)):
        owner = assign_columns(points, num, rank, generator("one"))
        assert owner.shape == (len(points),)
        one = float((np.linalg.svd(points.numpy(), compute_uv=False)[rank:] ** 2).sum())
        assert squared_error(points.numpy(), owner.numpy(), rank) <= one + 1e-9


def test_every_point_ends_in_its_nearest_subspace() -> None:
    points = normal(50, 7).numpy()
    owner = assign_columns(normal(50, 7), 3, 2, generator("nearest"), alternations=1000).numpy()
    projections = [np.linalg.svd(points[owner == z])[2][:2] for z in range(3)]
    distances = [np.linalg.norm(points - points @ V.T @ V, axis=1) for V in projections]
    assert (np.argmin(distances, axis=0) == owner).all()


def test_more_searching_never_finds_less() -> None:
    points = normal(40, 12)
    for starts, alternations in ((1, 0), (1, 2), (1, 5)):
        more = [(starts + 3, alternations), (starts, alternations + 3)]
        few = assign_columns(points, 3, 3, generator("more"), starts, alternations)
        for many in more[1:] if alternations == 0 else more:
            found = assign_columns(points, 3, 3, generator("more"), *many)
            bound = squared_error(points.numpy(), few.numpy(), 3)
            assert squared_error(points.numpy(), found.numpy(), 3) <= bound + 1e-9


@pytest.mark.parametrize(
    "points",
    [torch.zeros(9, 4), torch.ones(9, 4), torch.eye(9), torch.eye(3), torch.eye(9)[:, :1] * torch.ones(9, 4)],
    ids=["zero", "equal", "orthogonal", "as many as subspaces", "one point that is not zero"],
)
def test_subspaces_without_points_do_no_harm(points: Tensor) -> None:
    points = points.double()
    owner = assign_columns(points, 3, 2, generator("empty"))
    U_FKJ, V_KJN = subspace_factors(points.T, owner == torch.arange(3)[:, None], 2)
    assert U_FKJ.shape == (points.shape[1], 3, 2)
    assert V_KJN.shape == (3, 2, len(points))
    assert torch.isfinite(U_FKJ).all()
    assert torch.isfinite(V_KJN).all()
    residual = float((points.T - torch.einsum("fkj,kjn->fn", U_FKJ, V_KJN)).square().sum())
    assert residual == pytest.approx(squared_error(points.numpy(), owner.numpy(), 2), abs=1e-12)


@pytest.mark.parametrize("label", ["Messi3", "Messi5"])
@pytest.mark.parametrize("keep", [0.8, 0.6, 0.45])
def test_errors_and_sizes_are_those_of_the_network(state_of: StateOf, label: str, keep: float) -> None:
    state, groups = state_of("residual"), int(label[-1])
    compressed = compressor(state, label).compress(keep)
    expanded = expand(compressed.network, state.network, compressed.plan, state.example)
    assert compressed.plan.factors
    for name, factors in compressed.plan.factors.items():
        detail, layer = compressed.plan.details[name], state.network.get_submodule(name)
        W, W_hat = (
            net.get_submodule(name).weight.detach().flatten(1).double().numpy()
            for net in (state.network, expanded.network)
        )
        (f, n), j = W.shape, detail["rank"]
        assert (factors.rank, factors.groups, factors.folding) == (groups * j, 1, 0)
        assert (detail["groups"], detail["folding"]) == (groups, 0)
        error = np.linalg.norm(W - W_hat) / np.linalg.norm(W)
        assert detail["relative_error"] == pytest.approx(error, rel=1e-5)
        exact = np.linalg.norm(W - W_hat, 2) / np.linalg.norm(W, 2)
        assert detail["relative_error_exact"] == pytest.approx(exact, rel=1e-5)
        one = np.sqrt((np.linalg.svd(W, compute_uv=False)[j:] ** 2).sum()) / np.linalg.norm(W)
        assert error <= one + 1e-6
        encoder, decoder = (compressed.count.layers[f"{name}.{side}"] for side in ("encoder", "decoder"))
        assert encoder.parameters == j * n
        assert decoder.parameters == j * groups * f + (f if layer.bias is not None else 0)
        positions = count(state.network, state.example).layers[name].flops // (f * n)
        assert encoder.flops_unmasked + decoder.flops_unmasked == j * (n + groups * f) * positions
        owners = named_masks(compressed.network)[f"{name}.encoder.weight"].flatten(1).unflatten(0, (groups, j))
        assert (owners.sum((0, 1)) == j).all()  # as many weights in every column, all of one subspace
        assert torch.equal(owners.all(1), owners.any(1))


@pytest.mark.parametrize("label", ["Messi3", "Messi5"])
def test_ranks_are_the_same_share_everywhere(state_of: StateOf, label: str) -> None:
    state, groups = state_of("residual"), int(label[-1])
    for keep in (0.7, 0.5):
        made = compressor(state, label)
        details = made.compress(keep).plan.details
        shapes = {name: state.network.get_submodule(name).weight.flatten(1).shape for name in details}
        full = {name: min(f, n // groups) for name, (f, n) in shapes.items()}
        ranks = {name: details[name]["rank"] for name in details if details[name]["rank"] is not None}
        low = max((ranks[name] - 0.5) / full[name] for name in ranks if ranks[name] > 1)
        assert low <= min((ranks[name] + 0.5) / full[name] for name in ranks)


def test_groups_that_divide_nothing(state_of: StateOf) -> None:
    """Subspaces hold any input weights: one channel's kernel may be torn apart, 8 channels shared among 5."""
    compressed = compressor(state_of("residual"), "Messi5").compress(0.6)
    mask = compressed.plan.masks["conv1.encoder.weight"]  # (5 J, 8, 3, 3)
    rows = mask[:: mask.shape[0] // 5]
    assert (rows.sum(0) == 1).all()
    assert any(0 < int(channel.sum()) < 9 for channel in rows.flatten(0, 1).flatten(1))


def test_layer_too_small_for_the_subspaces_stays() -> None:
    network = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 40))
    compressed = compressor(State(network, torch.ones(1, 4)), "Messi5").compress(0.7)
    assert list(compressed.plan.factors) == ["1"]


def test_other_weights_keep_the_partition(state_of: StateOf) -> None:
    state = state_of("sequences")
    made = compressor(state)
    compressed = made.compress(0.5)
    with seeded("other"):
        layers = [nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in state.network]
    other = State(nn.Sequential(*layers).eval(), state.example)
    rewound = made.instantiate(compressed.plan, other)
    expanded = expand(rewound, other.network, compressed.plan, state.example).network
    for name, factors in compressed.plan.factors.items():
        mask = compressed.plan.masks[f"{name}.encoder.weight"]
        assert torch.equal(named_masks(rewound)[f"{name}.encoder.weight"], mask)
        rank = factors.rank // 3
        W = other.network.get_submodule(name).weight.detach().double().numpy()
        expected = np.zeros_like(W)
        for members in mask[::rank].numpy():
            L, S, Rt = np.linalg.svd(W[:, members], full_matrices=False)
            expected[:, members] = (L[:, :rank] * S[:rank]) @ Rt[:rank]
        np.testing.assert_allclose(expanded.get_submodule(name).weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_networks_depend_on_the_seed_alone(state_of: StateOf) -> None:
    state = state_of("residual")
    made = compressor(state)
    torch.manual_seed(1)
    first = [made.compress(keep).plan.masks for keep in (0.6, 0.4, 0.5)]
    torch.manual_seed(2)
    second = [compressor(state).compress(keep).plan.masks for keep in (0.6, 0.4, 0.5)]
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(mask, other[name]) for name, mask in one.items())
    others = [compressor(state, seed=seed, starts=1, alternations=1).compress(0.5).plan.masks for seed in range(2)]
    assert any(not torch.equal(mask, others[1][name]) for name, mask in others[0].items())


def test_same_rank_is_clustered_once(state_of: StateOf) -> None:
    made = compressor(state_of("cnn"))
    plan = made.compress(0.5).plan
    found = dict(made.analysis.clusterings)
    made.compress(0.5)
    assert {(n, d["rank"]) for n, d in plan.details.items() if d["rank"]} == found.keys()
    assert all(made.analysis.clusterings[key] is clustering for key, clustering in found.items())
    assert math.isfinite(sum(clustering.error for clustering in found.values()))
