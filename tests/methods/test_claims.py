"""What published implementations of low-rank methods get wrong, and what their allocations promise: a claim a test."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiment.layers.factored_layers import product, split_kernel
from experiment.layers.plan import Factors, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Compressed, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.layer_table import layer_rows
from experiment.methods.lowrank.layer_options import divisors, nearest_divisor
from experiment.random_streams import generator, seeded

KEEPS = (0.8, 0.6, 0.45)


def compressor(label: str, state: State, **settings: object) -> Compressor:
    entry = METHODS[label]
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_claims"))


def at_most(made: Compressor, parameters: int) -> Compressed:
    return made.compress(parameters / made.original.parameters)


def layers_of(state: State) -> dict[str, nn.Conv2d | nn.Linear]:
    return {n: m for n, m in state.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def sigma(A: np.ndarray) -> np.ndarray:
    return np.linalg.svd(A, compute_uv=False)


def matrix(layer: nn.Conv2d | nn.Linear) -> np.ndarray:
    return layer.weight.detach().flatten(1).double().numpy()


def positions(network: nn.Module, example: Tensor, name: str) -> int:
    """Output positions of one sample of a module, seen from outside."""
    seen: list[int] = []
    module = network.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _x, y: seen.append(y[0].numel() // y.shape[1]))
    network(example)
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("label", ["ALDS", "ALDS+", "ALDS-Simple3"])
def test_multiply_adds_of_grouped_factors_are_all_counted(label: str, state_of: Callable[[str], State]) -> None:
    """j (k f P_decoder + c kappa P_encoder) a layer, and in all what torch's own counter sees."""
    state, groups_seen = state_of("residual"), set()
    for keep in KEEPS:
        compressed = compressor(label, state).compress(keep)
        for name, f in compressed.plan.factors.items():
            weight = state.network.get_submodule(name).weight
            kernel = (*weight.shape, 1, 1)[2:4]
            encoder, decoder = (math.prod(side) for side in split_kernel(kernel, f.folding))
            P_encoder, P_decoder = (
                positions(compressed.network, state.example, f"{name}.{part}") for part in ("encoder", "decoder")
            )
            work = weight.shape[0] * decoder * f.groups * P_decoder + weight.shape[1] * encoder * P_encoder
            counted = [compressed.count.layers[f"{name}.{part}"].flops for part in ("encoder", "decoder")]
            assert sum(counted) == f.rank * work
            assert counted[0] > 0
            groups_seen.add(f.groups)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            compressed.network(state.example)
        assert compressed.count.flops == counter.get_total_flops() // 2
    assert max(groups_seen) > 1


def small_network(seed: int) -> State:
    """Three convolutions and a readout, with random widths and spectra."""
    rng = np.random.default_rng(seed)
    widths = [int(n) for n in rng.choice([4, 6, 8, 12], 4)]
    with seeded("test_claims", seed):
        convolutions = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths)]
        network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))
        for layer in convolutions:
            nn.init.normal_(layer.weight)
            rows = torch.tensor(rng.uniform(0.5, 1) ** np.arange(layer.out_channels), dtype=torch.float32)
            columns = torch.tensor(rng.uniform(0.2, 1, layer.in_channels), dtype=torch.float32)
            layer.weight.data *= rows[:, None, None, None] * columns[:, None, None]
    return State(network, torch.ones(1, widths[0], 4, 4))


def slice_curves(W: np.ndarray, channels: int) -> dict[int, np.ndarray]:
    """Number of groups -> error of ranks 0, 1, ...: max over slices of sigma_{j+1}, over sigma_1 of all."""
    curves = {k: np.max([sigma(A) for A in np.split(W, k, axis=1)], axis=0) for k in divisors(channels)}
    return {k: np.append(curve, 0.0) / curves[1][0] for k, curve in curves.items()}


def expectation_maximisation(
    curves: Sequence[Mapping[int, np.ndarray]],
    costs: Sequence[Mapping[int, int]],
    dense: Sequence[int],
    limit: int,
    start: Sequence[int],
) -> float:
    """Ranks for given groups by one threshold, groups for the budgets that these ranks cost, four times; the best one.

    As published, the second step looks up the smallest singular value that stays, not the largest that goes.
    """
    groups, best = list(start), math.inf
    for _ in range(5):
        chosen = [curve[k] for curve, k in zip(curves, groups, strict=True)]
        own = [cost[k] for cost, k in zip(costs, groups, strict=True)]
        for t in sorted(np.concatenate(chosen)):
            ranks = [max(1, int((curve > t).sum())) for curve in chosen]
            sizes = [min(j * cost, full) for j, cost, full in zip(ranks, own, dense, strict=True)]
            if sum(sizes) <= limit:
                layers = zip(chosen, ranks, sizes, dense, strict=True)
                best = min(best, max(curve[j] if size < full else 0.0 for curve, j, size, full in layers))
                break
        else:
            return best
        for i, budget in enumerate(j * cost for j, cost in zip(ranks, own, strict=True)):
            local = {k: min(int(budget / costs[i][k] + 0.5), len(curves[i][k]) - 1) for k in curves[i]}
            groups[i] = min((k for k in local if local[k] > 0), key=lambda k: curves[i][k][local[k] - 1])
    return best


def test_optimum_is_never_worse_than_expectation_maximisation() -> None:
    strictly_better = compared = 0
    for seed in range(6):
        state, rng = small_network(seed), np.random.default_rng(seed)
        made, layers = compressor("ALDS", state), layers_of(state)
        dense = [layer.weight.numel() for layer in layers.values()]
        channels = [layer.weight.shape[1] for layer in layers.values()]
        curves = [slice_curves(matrix(layer), layer.weight.shape[1]) for layer in layers.values()]
        costs = [
            {k: k * m.weight.shape[0] + m.weight[0].numel() for k in divisors(m.weight.shape[1])}
            for m in layers.values()
        ]
        fixed = made.original.parameters - sum(dense)
        starts = [[nearest_divisor(c, k) for c in channels] for k in (3, 5, 7, 9)]
        starts += [[int(rng.choice(divisors(c))) for c in channels] for _ in range(11)]
        for keep in (0.9, 0.75, 0.6, 0.5, 0.4):
            limit = int(keep * made.original.parameters) - fixed
            found = min(expectation_maximisation(curves, costs, dense, limit, start) for start in starts)
            if found == math.inf:
                continue
            details = made.compress(keep).plan.details.values()
            own = max(float(str(detail["relative_error"])) for detail in details)
            assert own <= found + 1e-6
            compared += 1
            strictly_better += own < found - 1e-6
    assert compared > 20
    assert strictly_better > 0


@pytest.mark.parametrize("folding", [1, 2])
def test_errors_of_split_kernels_are_those_of_slices_that_are_cut_first(folding: int) -> None:
    """Cutting the folded matrix instead would cut kernels, of which an encoder's groups know nothing."""
    seen = 0
    for seed, groups in itertools.product((0, 1), (2, 3)):
        state = small_network(seed)
        compressed = compressor("ALDS-Error3", state, groups=groups, folding=folding).compress(0.6)
        for name, f in compressed.plan.factors.items():
            weight = state.network.get_submodule(name).weight.detach().double().numpy()
            if f.groups == 1 or weight.ndim == 2:
                continue
            assert f.folding == folding
            order = (0, 2, 3, 1) if folding == 1 else (0, 3, 2, 1)  # filters and one axis by the other one and channels

            def folded(part: np.ndarray, order: tuple[int, ...] = order) -> np.ndarray:
                return part.transpose(order).reshape(part.shape[0] * part.shape[order[1]], -1)

            whole = folded(weight)
            norm = sigma(whole)[0]
            cut_first = max(sigma(folded(part))[f.rank] for part in np.split(weight, f.groups, axis=1)) / norm
            folded_first = max(sigma(part)[f.rank] for part in np.split(whole, f.groups, axis=1)) / norm
            assert compressed.plan.details[name]["relative_error"] == pytest.approx(cut_first, abs=1e-6)
            assert abs(folded_first - cut_first) > 1e-3
            left = whole - folded(product(compressed.network.get_submodule(name)).numpy())
            exact = compressed.plan.details[name]["relative_error_exact"]
            assert exact == pytest.approx(sigma(left)[0] / norm, abs=1e-6)
            seen += 1
    assert seen > 3


@pytest.mark.parametrize("label", ["ALDS", "SVD-Energy", "WT", "FT"])
def test_zeros_that_nobody_pruned_still_train(label: str, state_of: Callable[[str], State]) -> None:
    """A bias that happens to be 0, and an input that a factor happens to ignore, are not taken for masked ones."""
    state = state_of("cnn")
    with torch.no_grad():
        for layer in layers_of(state).values():
            layer.bias.zero_()
        state.network[4].weight[:, 3] = 0
    network = compressor(label, state).compress(0.6).network.train()
    biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert biases
    assert not any(bias.any() for bias in biases)
    inputs = torch.randn(16, *state.example.shape[1:], generator=generator("test_claims", "inputs"))
    outputs = network(inputs)
    (outputs * torch.randn(outputs.shape, generator=generator("test_claims", "outputs"))).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert all(biases[i].count_nonzero() > len(biases[i]) // 2 for i in (-2, -1))  # those before no BatchNorm
    if label in ("ALDS", "SVD-Energy"):
        encoder = network[4].get_submodule("encoder")
        columns = product(network[4])[:, 3]
        assert not hasattr(encoder, "parametrizations")
        assert columns.any()


@pytest.mark.parametrize("label", ["ALDS", "SVD"])
def test_table_has_every_layer_whatever_became_of_it(label: str, state: State) -> None:
    """As many rows for every keep ratio, though layers turn into two; their sums are the network's."""
    made = compressor(label, state)
    for keep in (1.0, *KEEPS):
        compressed = made.compress(keep)
        rows = layer_rows(made.original, compressed)
        assert [row["layer"] for row in rows] == list(layers_of(state))
        assert sum(int(str(row["flops"])) for row in rows) == compressed.count.flops
        rest = made.original.parameters - sum(int(str(row["parameters_before"])) for row in rows)
        assert sum(int(str(row["parameters"])) for row in rows) + rest == compressed.count.parameters


def test_every_spectrum_is_computed_once(monkeypatch: pytest.MonkeyPatch, state_of: Callable[[str], State]) -> None:
    """No values after the analysis, and vectors only for slicings that were not chosen before."""
    calls = {"eigvalsh": 0, "eigh": 0}
    for name in calls:
        original = getattr(torch.linalg, name)

        def counting(A: Tensor, name: str = name, original: Callable[[Tensor], object] = original) -> object:
            calls[name] += A.dim() > 2  # of a layer's slices; the residuals' matrices have two dimensions
            return original(A)

        monkeypatch.setattr(torch.linalg, name, counting)
    made = compressor("ALDS", state_of("residual"))
    values, chosen = calls["eigvalsh"], set()
    assert values == sum(len(options.slicings()) for options in made.analysis.base.options.values())
    for keep in (*KEEPS, 0.7, 0.5, *KEEPS):
        plan = made.compress(keep).plan
        chosen |= {(name, f.groups, f.folding) for name, f in plan.factors.items()}
        assert calls == {"eigvalsh": values, "eigh": len(chosen)}


@pytest.mark.parametrize("seed", range(4))
def test_l_rank_minimises_cost_and_energy_lost(seed: int) -> None:
    """min over ranks of lambda C(r) + sum_{i>r} sigma_i^2, C the multiply-adds, tried for every rank of every layer."""
    state = small_network(seed)
    made, layers = compressor("L-Rank", state), layers_of(state)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        weight, size, expected = 10 ** rng.uniform(-5, -2), made.original.parameters, {}
        for name, layer in layers.items():
            energies = sigma(matrix(layer)) ** 2
            a_rank = layer.weight.shape[0] + layer.weight[0].numel()
            work = a_rank * positions(state.network, state.example, name) if layer.weight.dim() == 4 else a_rank
            losses = [weight * work * r + energies[r:].sum() for r in range(1, len(energies) + 1)]
            rank = int(np.argmin(losses)) + 1
            if rank * a_rank < layer.weight.numel():
                expected[name] = Factors(rank, bias=layer.bias is not None)
                size += rank * a_rank - layer.weight.numel()
        assert at_most(made, size).plan.factors == expected


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SVD-Energy": lambda s: np.append(np.cumsum((s**2)[::-1])[::-1][1:], 0) / (s**2).sum(),
    "SVD-Nuclear": lambda s: np.append(np.cumsum(s[::-1])[::-1][1:], 0) / s.sum(),
    "SVD-Error": lambda s: np.append(s[1:], 0) / s[0],
}


@pytest.mark.parametrize("label", CURVES)
def test_one_threshold_for_all_layers_and_the_next_is_too_dear(label: str, state: State) -> None:
    made, layers = compressor(label, state), layers_of(state)
    curves = {name: CURVES[label](sigma(matrix(layer))) for name, layer in layers.items()}

    def at(t: float) -> tuple[dict[str, int], int]:
        """Ranks whose residual is at most t, of layers that they make smaller, and the network's size."""
        ranks, size = {}, made.original.parameters
        for name, layer in layers.items():
            rank, dense = int(np.argmax(curves[name] <= t)) + 1, layer.weight.numel()
            if (cost := rank * (layer.weight.shape[0] + layer.weight[0].numel())) < dense:
                ranks[name], size = rank, size + cost - dense
        return ranks, size

    breakpoints = np.sort(np.concatenate(list(curves.values())))
    for keep in KEEPS:
        limit = int(keep * made.original.parameters)
        t = next(t for t in breakpoints + 1e-9 if at(t)[1] <= limit)
        found = made.compress(keep).plan
        assert {name: f.rank for name, f in found.factors.items()} == at(t)[0]
        assert all(float(str(detail["relative_error"])) <= t for detail in found.details.values())
        assert at(breakpoints[breakpoints < t - 2e-9][-1] + 1e-9)[1] > limit


def test_more_foldings_never_make_the_optimum_worse(state: State) -> None:
    for keep in KEEPS:
        worst = {}
        for label in ("ALDS", "ALDS+"):
            details = compressor(label, state).compress(keep).plan.details.values()
            worst[label] = max(float(str(detail["relative_error"])) for detail in details)
        assert worst["ALDS+"] <= worst["ALDS"] + 1e-9
