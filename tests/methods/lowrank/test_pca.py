"""PCA: moments, eigenvalues and biases against numpy on all responses at once, the threshold against brute force."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.errors import CompressionError
from experiment.layers.build import build, expand
from experiment.layers.plan import Plan, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressed, Compressor, make_method
from experiment.methods.data import responses
from experiment.methods.data.responses import gather, span_of
from experiment.methods.lowrank.pca import next_scores
from experiment.random_streams import generator, seeded

StateOf = Callable[[str], State]


def images(state: State, number: int = 21) -> Tensor:
    """Calibration data whose mean is far from zero."""
    return torch.randn(number, *state.example.shape[1:], generator=generator("test_pca")) + 2


def compressor(state: State, inputs: Tensor | None = None, label: str = "PCA", **settings: int) -> Compressor:
    entry = METHODS[label]
    calibration = Calibration(images(state) if inputs is None else inputs)
    original = count(state.network, state.example)
    return Compressor(make_method(entry, entry.settings(**settings)), state, original, calibration, generator("pca"))


def compress_layer(layer: nn.Module, inputs: Tensor, keep: float = 0.6) -> Compressed:
    return compressor(State(nn.Sequential(layer).eval(), inputs[:1]), inputs).compress(keep)


def rows(layer: nn.Module, y: Tensor) -> np.ndarray:
    """Responses, one a row."""
    return (y.movedim(1, -1) if isinstance(layer, nn.Conv2d) else y).detach().double().flatten(0, -2).numpy()


def all_responses(network: nn.Module, inputs: Tensor) -> dict[str, np.ndarray]:
    """Every layer's responses to all inputs at once, those of all its uses together."""
    kept: dict[str, list[np.ndarray]] = {}
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [
        layer.register_forward_hook(lambda m, x, y, name=name: kept.setdefault(name, []).append(rows(m, y)))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def variances(y: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, falling."""
    return np.linalg.svd(y - y.mean(0), compute_uv=False) ** 2 / len(y)


class Twice(nn.Module):
    """A convolution used on two grids and a linear layer used on vectors and on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu_(self.conv(x))[:, :, ::2])  # in place: the hook must have looked before
        return self.fc(x.mean((2, 3))) + self.fc(input=x.flatten(2).mT).sum(1)


def twice() -> State:
    with seeded("test_pca"):
        network = Twice().eval()
    return State(network, torch.randn(1, 4, 6, 6, generator=generator("twice")))


@pytest.mark.parametrize("name", ["cnn", "residual", "sequences", "twice"])
@pytest.mark.parametrize("positions", [7, 4096])
def test_streamed_moments_are_those_of_all_responses(
    state_of: StateOf, name: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "POSITIONS", positions)
    state = twice() if name == "twice" else state_of(name)
    modes = [m.training for m in state.network.modules()]
    expected = all_responses(state.network, images(state))
    found = gather(state.network.train(), expected, images(state))
    assert found.keys() == expected.keys()
    for layer, y in expected.items():
        np.testing.assert_allclose(found[layer].covariance, np.cov(y.T, bias=True), rtol=1e-5, atol=1e-6)
        module = state.network.get_submodule(layer)
        np.testing.assert_allclose(found[layer].mean_response(module, module.weight), y.mean(0), rtol=1e-5, atol=1e-5)
    assert all(m.training for m in state.network.modules())
    assert not any(modes)


def test_mean_far_from_zero_costs_no_digits() -> None:
    layer, x = nn.Linear(3, 3).double(), torch.randn(50, 3, generator=generator("far")).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
        layer.bias.fill_(1e6)
    found = gather(nn.Sequential(layer), ["0"], x)["0"]
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_many_features_are_described_in_the_span_of_the_weight(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ranks, errors and network as from the covariance of all features."""
    with seeded("test_pca", "span"):
        network = nn.Sequential(
            nn.Linear(12, 40, bias=bias), nn.Tanh(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 60)
        )
        x = torch.randn(200, 12) @ torch.randn(12, 12)
    made = []
    for many in (10**6, 30):
        monkeypatch.setattr(responses, "MANY_FEATURES", many)
        made.append(compress(network, "PCA", keep=0.6, example=x[:1], data=x, progress=False))
    whole, spanned = made
    assert span_of(network[0].weight) is not None
    assert span_of(network[2].weight) is None
    assert {"0", "4"} <= whole.plan.factors.keys()
    assert whole.plan.to_data() == spanned.plan.to_data()
    for name in ("relative_error", "relative_error_exact"):
        np.testing.assert_allclose(spanned.layers[name], whole.layers[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(spanned.network(x), whole.network(x), rtol=1e-4, atol=1e-5)


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    with seeded("layers"):
        return {
            "linear": (nn.Linear(20, 16), (200, 20)),
            "linear without bias": (nn.Linear(20, 16, bias=False), (200, 20)),
            "sequences": (nn.Linear(20, 16), (30, 7, 20)),
            "convolution": (nn.Conv2d(4, 12, 3, stride=2, padding=1), (20, 4, 9, 9)),
            "convolution without bias": (nn.Conv2d(4, 12, (1, 3), padding="same", bias=False), (20, 4, 9, 9)),
        }


@pytest.mark.parametrize("name", layers())
def test_error_is_the_sum_of_the_eigenvalues_left_out(name: str) -> None:
    layer, shape = layers()[name]
    x = torch.randn(shape, generator=generator("x")) + 1
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, 2, 5, generator=generator("b"))
    compressed = compress_layer(layer, x)
    rank, detail = compressed.plan.factors["0"].rank, compressed.plan.details["0"]
    assert 1 <= rank < 12
    y, y_hat = rows(layer, layer(x)), rows(layer, compressed.network(x))
    eigenvalues = variances(y)
    assert ((y - y_hat) ** 2).sum(1).mean() == pytest.approx(eigenvalues[rank:].sum(), rel=1e-5)
    assert detail["relative_error"] == pytest.approx(eigenvalues[rank:].sum() / eigenvalues.sum(), rel=1e-5)
    W = layer.weight.detach().flatten(1).double().numpy()
    W_hat = expand(compressed.network, nn.Sequential(layer), compressed.plan, x[:1]).network[0].weight
    exact = np.linalg.norm(W - W_hat.detach().flatten(1).double().numpy(), 2) / np.linalg.norm(W, 2)
    assert detail["relative_error_exact"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", layers())
def test_bias_is_numpys_and_beats_the_wrong_one(name: str) -> None:
    layer, shape = layers()[name]
    x = torch.randn(shape, generator=generator("x")) + 1
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, 2, 5, generator=generator("b"))
    compressed = compress_layer(layer, x)
    y = rows(layer, layer(x))
    m, U = y.mean(0), np.linalg.svd((y - y.mean(0)).T)[0][:, : compressed.plan.factors["0"].rank]
    b = np.zeros(len(m)) if layer.bias is None else layer.bias.detach().double().numpy()
    decoder = compressed.network[0].decoder
    np.testing.assert_allclose(decoder.bias.detach(), m + U @ (U.T @ (b - m)), rtol=1e-4, atol=1e-5)

    def error() -> float:
        return float(((y - rows(layer, compressed.network(x))) ** 2).sum(1).mean())

    right = error()
    with torch.no_grad():
        decoder.bias.copy_(torch.from_numpy(b + m - U @ (U.T @ m)))  # counts what U leaves out of the bias twice
    if layer.bias is None:
        assert error() == pytest.approx(right, rel=1e-4)
    else:
        assert error() > 1.2 * right


def by_brute_force(state: State, limit: int) -> dict[str, int]:
    """Ranks, 0 for a layer left as it is: of all thresholds between scores, the lowest one that fits."""
    spectra = {name: variances(y) for name, y in all_responses(state.network, images(state)).items()}
    counted = count(state.network, state.example)
    sizes, scores = {}, {}
    for name, eigenvalues in spectra.items():
        weight = state.network.get_submodule(name).weight
        f, n = len(weight), weight[0].numel()
        positions = counted.layers[name].flops // weight.numel()
        sizes[name] = (f, n, counted.layers[name].parameters)
        scores[name] = eigenvalues / np.cumsum(eigenvalues) / ((f + n) * positions)
    fixed = counted.parameters - sum(dense for _, _, dense in sizes.values())
    for t in [0, *np.sort(np.concatenate(list(scores.values())))]:
        total, ranks = fixed, {}
        for name, (f, n, dense) in sizes.items():
            rank = max(1, int((scores[name] > t * (1 + 1e-9)).sum()))
            size = rank * (f + n) + f
            ranks[name] = rank if size < dense else 0
            total += min(size, dense)
        if total <= limit:
            return ranks
    raise AssertionError("nothing fits")


@pytest.mark.parametrize("name", ["cnn", "residual"])
@pytest.mark.parametrize("keep", [0.9, 0.75, 0.6, 0.45])
def test_ranks_are_those_of_the_lowest_threshold_that_fits(state_of: StateOf, name: str, keep: float) -> None:
    state = state_of(name)
    made = compressor(state)
    limit = int(keep * made.original.parameters)
    factors = made.compress(keep).plan.factors
    found = {name: factors[name].rank if name in factors else 0 for name in made.analysis.base.options}
    assert found == by_brute_force(state, limit)


def test_scores_never_rise() -> None:
    for seed in range(20):
        values = torch.rand(30, generator=generator("scores", seed)).double().square().numpy()
        values[seed:] = 0 if seed % 2 else values[seed:]
        scores = next_scores(np.sort(values)[::-1].copy())
        assert (np.diff(scores) <= 0).all()
        assert scores[-1] == 0
    assert not next_scores(np.zeros(4)).any()


def test_layers_without_bias_gain_one_that_counts(state_of: StateOf) -> None:
    state = state_of("residual")
    compressed = compressor(state).compress(0.6)
    gained = [n for n in compressed.plan.factors if state.network.get_submodule(n).bias is None]
    assert gained
    for name, factors in compressed.plan.factors.items():
        f, n = state.network.get_submodule(name).weight.flatten(1).shape
        assert compressed.count.layers[f"{name}.encoder"].parameters == factors.rank * n
        assert compressed.count.layers[f"{name}.decoder"].parameters == factors.rank * f + f
    middle = expand(compressed.network, state.network, compressed.plan, state.example)
    assert middle.biases == tuple(gained)
    again = compressor(middle).analysis.base.start
    assert all(again.layers[name].bias for name in gained)
    whole = compressor(state).original.layers
    assert all(again.layer_cost(n, "parameters") == whole[n].parameters + len(middle.network.get_submodule(n).bias)
               for n in gained)  # fmt: skip


@pytest.mark.parametrize("label", ["WT", "FT", "SVD", "PCA", "Messi3"])
def test_what_follows_in_a_cascade_rebuilds_from_the_original(state_of: StateOf, label: str) -> None:
    state = state_of("residual")
    first = compressor(state).compress(0.8)
    middle = expand(first.network, state.network, first.plan, state.example)
    assert middle.biases
    second = compressor(middle, label=label).compress(0.75)
    left = {name for name in middle.biases if name not in second.plan.factors}
    assert set(second.plan.biases) == left
    assert left or label not in ("WT", "FT")
    rebuilt = build(state.network, Plan.from_data(json.loads(json.dumps(second.plan.to_data())), state.network)).eval()
    rebuilt.load_state_dict(second.network.state_dict())
    assert torch.equal(rebuilt(state.example), second.network(state.example))
    end = expand(second.network, state.network, second.plan, state.example)
    torch.testing.assert_close(end.network(state.example), second.network(state.example), rtol=1e-4, atol=1e-4)
    rewound = compressor(middle, label=label).instantiate(second.plan, state)
    assert rewound.state_dict().keys() == second.network.state_dict().keys()
    assert all(not rewound.get_submodule(name).bias.any() for name in left)


def test_other_weights_keep_the_basis_and_get_their_own_mean(state_of: StateOf) -> None:
    """The first layer's inputs are the same whatever the weights: its projected responses have their own mean."""
    state = state_of("cnn")
    made = compressor(state)
    plan = made.compress(0.5).plan
    with seeded("other"):
        other = State(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *list(state.network)[1:]), state.example)
    with torch.no_grad():
        factored = made.instantiate(plan, other)[0]
        y, y_hat = (rows(other.network[0], layer(images(state))) for layer in (other.network[0], factored))
    np.testing.assert_allclose(y_hat.mean(0), y.mean(0), rtol=1e-5, atol=1e-5)
    U = np.linalg.svd(np.cov(all_responses(state.network, images(state))["0"].T))[0][:, : plan.factors["0"].rank]
    np.testing.assert_allclose(y_hat, y.mean(0) + (y - y.mean(0)) @ U @ U.T, rtol=1e-4, atol=1e-4)


def test_layer_that_never_answers_anything_else_has_rank_one(state_of: StateOf) -> None:
    state = state_of("cnn")
    nn.init.zeros_(state.network[10].weight)
    compressed = compressor(state).compress(0.5)
    detail = compressed.plan.details["10"]
    assert (detail["rank"], detail["relative_error"], detail["relative_error_exact"]) == (1, 0, 0)
    assert torch.isfinite(compressed.network(state.example)).all()


def test_rounding_is_no_variance() -> None:
    """Responses that differ by their last bit only."""
    network = nn.Sequential(nn.Linear(8, 6, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(0.1).mul_(1 + 1e-7 * torch.arange(6)[:, None])
    x = (1 + torch.rand(40, 1, generator=generator("last")) * 1e-7).expand(40, 8)
    found = compressor(State(network, x[:1]), x).analysis
    assert gather(network, ["0"], x)["0"].covariance.any()
    assert not found.thresholds[0].any()


def test_ranks_are_rounded(state_of: StateOf) -> None:
    compressed = compressor(state_of("residual"), round_to=3).compress(0.6)
    assert compressed.plan.factors
    assert all(factors.rank % 3 == 0 for factors in compressed.plan.factors.values())


def test_missing_or_broken_data_are_told(state_of: StateOf) -> None:
    state, entry = state_of("cnn"), METHODS["PCA"]
    method, original = make_method(entry, entry.settings()), count(state.network, state.example)
    for calibration in (None, Calibration(torch.zeros(0, 3, 8, 8))):
        with pytest.raises(CompressionError, match="needs calibration data.*data=inputs"):
            Compressor(method, state, original, calibration, generator("test_pca"))
    with pytest.raises(CompressionError, match="layer '0': its responses to the calibration data must be finite"):
        compressor(state, torch.full((2, 3, 8, 8), torch.nan))
