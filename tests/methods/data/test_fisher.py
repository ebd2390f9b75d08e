"""The Fisher factors: against explicit loops, against the encoders' answers, and against the divergence itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.factored_layers import fold, make_layer, write_factors
from experiment.layers.plan import Factors
from experiment.methods.data import fisher
from experiment.methods.data.fisher import gather, log_probabilities
from experiment.random_streams import generator, seeded


def randn(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("test_fisher", name))


def cnn() -> nn.Sequential:
    with seeded("test_fisher"):
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(6, 5, (2, 3), padding=(0, 1), bias=False), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Dropout(), nn.Linear(45, 3),
        ).eval()  # fmt: skip


IMAGES = (5, 4, 8, 6)


def test_gradients_are_those_of_a_loop_over_samples_and_positions() -> None:
    network, x = cnn(), randn(*IMAGES)
    found = gather(network, {"0": [], "2": [], "6": []}, x, generator("labels"))
    labels = torch.multinomial(network(x).detach().softmax(1), 1, generator=generator("labels"))[:, 0]

    expected = {name: torch.zeros_like(moments.gradient) for name, moments in found.items()}
    for image, label in zip(x, labels, strict=True):
        first = network[0](image[None])
        second = network[2](first.relu())
        third = network[6](second.relu().flatten(1))
        third.retain_grad(), second.retain_grad(), first.retain_grad()
        third.log_softmax(1)[0, label].backward()
        for name, y in (("0", first), ("2", second), ("6", third)):
            for g in y.grad[0].flatten(1).T if y.dim() == 4 else y.grad:
                expected[name] += torch.outer(g, g)
    for name, moments in found.items():
        torch.testing.assert_close(moments.gradient, expected[name], rtol=1e-4, atol=1e-6)


def encoder_inputs(network: nn.Module, name: str, x: Tensor) -> list[Tensor]:
    found = []
    layer = network.get_submodule(name)
    handle = layer.register_forward_hook(
        lambda _, args, named, y: found.append((args[0] if args else named["input"]).clone()), with_kwargs=True
    )
    network(x)
    handle.remove()
    return found


@torch.no_grad()
def check_grams(network: nn.Module, name: str, x: Tensor, slicings: list[tuple[int, int]]) -> None:
    """Whatever the order of columns: V C V^T are the moments of what an encoder V answers."""
    layer, (moments,) = network.get_submodule(name), gather(network, {name: slicings}, x, generator("g")).values()
    for groups, folding in slicings:
        W_GRN, gram = fold(layer.weight, groups, folding), moments.grams[groups, folding]
        wide = W_GRN.shape[1] <= W_GRN.shape[2]
        V_GJN = W_GRN if wide else randn(groups, 7, W_GRN.shape[2])
        pair = make_layer(layer, Factors(V_GJN.shape[1], groups, folding))
        write_factors(pair, torch.zeros(groups, W_GRN.shape[1], V_GJN.shape[1]), V_GJN, folding)
        answers = []
        for given in encoder_inputs(network, name, x):
            h = pair.encoder(given)
            answers.append(h.movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1))
        h_GJP = torch.cat(answers, 1).reshape(groups, V_GJN.shape[1], -1).double()
        assert moments.places[groups, folding] == h_GJP.shape[2]
        V = torch.eye(gram.shape[1]).double() if wide else V_GJN.double()
        torch.testing.assert_close(V @ gram @ V.mT, h_GJP @ h_GJP.mT, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["0", "2", "6"])
def test_inputs_are_what_encoders_see(name: str) -> None:
    foldings, channels = ((0,), 45) if name == "6" else (range(4), {"0": 4, "2": 6}[name])
    divisors = [k for k in range(1, channels + 1) if channels % k == 0]
    check_grams(cnn(), name, randn(*IMAGES), [(k, f) for k in divisors for f in foldings])


class Odd(nn.Module):
    """Layers used twice, on grids and sequences, given by name; one without effect; one behind no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.fc, self.last, self.idle, self.frozen = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu_(self.conv(x))[:, :, ::2])
        y = self.fc(x.mean((2, 3))).relu_() + self.fc(input=x.flatten(2).mT).relu_().sum(1)
        self.idle(y)
        with torch.no_grad():
            shift = self.frozen(y)
        return self.last(input=y + shift)


def odd() -> Odd:
    with seeded("test_fisher", "odd"):
        return Odd().eval()


@pytest.mark.parametrize("name", ["conv", "fc", "last", "idle", "frozen"])
def test_all_uses_of_a_layer_count(name: str) -> None:
    network, x = odd(), randn(5, 4, 6, 6)
    slicings = [(1, 0), (2, 0), (2, 1), (4, 3)] if name == "conv" else [(1, 0), (2, 0)]
    check_grams(network, name, x, slicings)
    gradient = gather(network, {name: slicings}, x, generator("g"))[name].gradient
    assert bool(gradient.any()) == (name not in ("idle", "frozen"))


def test_frozen_weights_and_training_mode_change_nothing_and_are_not_changed() -> None:
    network, x, layers = cnn(), randn(*IMAGES), {"0": [(1, 0)], "6": [(1, 0)]}
    expected = gather(network, layers, x, generator("g"))
    frozen = copy.deepcopy(network).requires_grad_(False).train()
    before = copy.deepcopy(frozen.state_dict())
    with torch.no_grad():
        found = gather(frozen, layers, x, generator("g"))
    for name in layers:
        assert torch.equal(found[name].gradient, expected[name].gradient)
        assert torch.equal(found[name].grams[1, 0], expected[name].grams[1, 0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in frozen.modules())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())


def test_moments_of_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, layers = cnn(), randn(*IMAGES), {"0": [(1, 0), (2, 3)]}
    whole = gather(network, layers, x, generator("g"))["0"]
    monkeypatch.setattr(fisher, "SAMPLES", 2)
    parts = gather(network, layers, x, generator("g"))["0"]
    assert whole.places == parts.places
    for slicing, gram in whole.grams.items():
        torch.testing.assert_close(parts.grams[slicing], gram, rtol=1e-4, atol=1e-4)


def test_few_places_give_the_same_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = cnn(), randn(40, 4, 8, 6)
    whole = gather(network, {"0": [(4, 0)]}, x, generator("g"))["0"]
    monkeypatch.setattr(fisher, "PLACES", 200)
    some = gather(network, {"0": [(4, 0)]}, x, generator("g"))["0"]
    assert 200 <= some.places[4, 0] < 210
    assert whole.places[4, 0] == 40 * 4 * 3
    expected, found = whole.grams[4, 0] / whole.places[4, 0], some.grams[4, 0] / some.places[4, 0]
    assert (found - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("name", ["0", "2"])
def test_prediction_is_the_divergence_of_a_small_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One input, so that inputs and gradients are independent, many times, so that labels average out."""
    monkeypatch.setattr(fisher, "SAMPLES", 1000)
    with seeded("test_fisher", "small"):
        network = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, draws, layer = randn(1, 3).double(), 20_000, network.get_submodule(name)
    moments = gather(network, {name: [(1, 0)]}, x.expand(draws, -1), generator("labels"))[name]
    G_FF, C_NN = moments.gradient[0] / draws, moments.grams[1, 0][0] / moments.places[1, 0]
    torch.testing.assert_close(C_NN.trace(), encoder_inputs(network, name, x)[0].square().sum())

    E_FN = 1e-3 * randn(*layer.weight.shape, name="E").double()
    predicted = 0.5 * (G_FF @ E_FN @ C_NN @ E_FN.T).trace()
    p = network(x).softmax(1)
    with torch.no_grad():
        layer.weight += E_FN
        measured = (p * (p.log() - network(x).log_softmax(1))).sum()
    torch.testing.assert_close(measured, predicted, rtol=0.05, atol=0)


@pytest.mark.parametrize(("shape", "rows"), [((4, 3), 4), ((4, 5, 3), 20), ((2, 3, 5, 6), 60)])
def test_classes_are_the_last_dimension_or_the_second_of_grids(shape: tuple[int, ...], rows: int) -> None:
    logarithms = log_probabilities(randn(*shape))
    assert logarithms.shape == (rows, 3)
    torch.testing.assert_close(logarithms.exp().sum(1), torch.ones(rows))


class Gives(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.fc, self.spare, self.what = nn.Linear(4, 1 if what in ("one", "vector") else 3), nn.Linear(4, 3), what

    def forward(self, x: Tensor) -> object:
        y = self.fc(x)
        if self.what == "root":  # finite, with a derivative that is not
            return (y * 0).abs().sqrt()
        return {"text": "scores", "vector": y[:, 0]}.get(self.what, y)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "the network must return tensors. It returned a str"),
        ("one", r"at least two classes. Got shape \(6, 1\): choose a method"),
        ("vector", r"at least two classes. Got shape \(6,\): choose a method"),
        ("root", "layer 'fc': its inputs, responses or gradients .* are NaN or infinite"),
        ("unused", "layer 'spare': the calibration data never reach it"),
    ],
)
def test_what_has_no_moments_is_told(what: str, message: str) -> None:
    layers = {"fc": [(1, 0)], "spare": [(1, 0)]} if what == "unused" else {"fc": [(1, 0)]}
    with pytest.raises(CompressionError, match=message):
        gather(Gives(what), layers, randn(6, 4), generator("g"))


def test_inputs_that_are_not_finite_are_told() -> None:
    with pytest.raises(CompressionError, match="outputs on the calibration data are NaN or infinite"):
        gather(cnn(), {"0": [(1, 0)]}, torch.full(IMAGES, torch.nan), generator("g"))


def test_no_layers() -> None:
    assert gather(cnn(), {}, randn(*IMAGES), generator("g")) == {}
