"""ThiNet: the greedy order by brute force, which end of it goes, and what readers contribute."""

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.plan import Kept, State
from experiment.measure import count
from experiment.methods.base import Calibration, Compressor
from experiment.methods.filters.settings import ThiNetSettings
from experiment.methods.filters.thinet import greedy_order, thinet
from experiment.random_streams import generator, seeded


def randn(*shape: int, name: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("test_thinet", name))


def compressor(network: nn.Module, inputs: Tensor, **settings: object) -> Compressor:
    state = State(network, inputs[:1])
    method = thinet(ThiNetSettings(**settings))
    return Compressor(method, state, count(network, inputs[:1]), Calibration(inputs), generator("test_thinet"))


def test_each_step_takes_the_channel_that_costs_least() -> None:
    X = randn(7, 20).double()
    order = greedy_order(X)
    assert sorted(order) == list(range(7))
    for step, chosen in enumerate(order):
        costs = {q: float(X[[*order[:step], q]].sum(0).square().sum()) for q in range(7) if q not in order[:step]}
        assert costs[chosen] == pytest.approx(min(costs.values()))


def test_channels_that_cancel_go_together() -> None:
    x = randn(1, 30).double()
    X = torch.cat([3 * x, 3 * randn(1, 30, name="b").double(), -2.5 * x, randn(1, 30, name="c").double()])
    order = greedy_order(X)
    assert order[0] == 3
    assert set(order[1:3]) == {0, 2}


def scaled(padding: int = 1) -> tuple[nn.Sequential, list[int]]:
    """Eight channels, of which three reach their reader a thousandth as strong."""
    weak = [1, 4, 6]
    with seeded("test_thinet"):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(54, 4),
        ).eval()  # fmt: skip
    with torch.no_grad():
        network[2].weight[:, weak] *= 1e-3
    return network, weak


def test_channels_that_readers_hardly_see_go_first() -> None:
    network, weak = scaled()
    made = compressor(network, randn(30, 3, 8, 8))
    scores = made.analysis.scores[0]
    assert sorted(scores.argsort()[:3].tolist()) == weak
    whole = count(network, randn(1, 3, 8, 8)).parameters
    for keep in (0.9, 0.75):
        stay = made.compress(keep).plan.kept["0"].out
        assert stay is not None
        assert 5 <= len(stay) < 8
        assert set(range(8)) - set(stay) <= set(weak)
        assert made.compress(keep).count.parameters <= keep * whole


def test_contributions_are_what_the_readers_are_given_times_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all channels they add up to the answers, bias aside; those of one are the answers to it alone."""
    network, _ = scaled()
    x = randn(30, 3, 8, 8)
    samples = []

    def record(X: Tensor) -> list[int]:
        samples.append(X)
        return greedy_order(X)

    monkeypatch.setattr("experiment.methods.filters.thinet.greedy_order", record)
    compressor(network, x, samples=4000)
    first, *_ = samples  # (8, samples), relative to the answers
    assert float(first.sum(0).square().sum()) == pytest.approx(1)
    with torch.no_grad():
        a, bias = network[1](network[0](x)), network[2].bias[:, None, None]
        answers = network[2](a) - bias
        for channel in range(8):
            alone = torch.zeros_like(a)
            alone[:, channel] = a[:, channel]
            share = float((network[2](alone) - bias).square().mean() / answers.square().mean())
            assert float(first[channel].square().sum()) == pytest.approx(share, rel=0.2)


class TwoReaders(nn.Module):
    """Channel 0 matters to a loud reader alone, channel 1 to a quiet one, channel 2 to both a little."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.loud, self.quiet = nn.Linear(3, 3, bias=False), nn.Linear(3, 4), nn.Linear(3, 4)
        with torch.no_grad():
            self.a.weight.copy_(torch.eye(3))
            self.loud.weight.copy_(1000 * torch.tensor([1.0, 0.01, 0.3]).expand(4, 3))
            self.quiet.weight.copy_(0.001 * torch.tensor([0.01, 1.0, 0.3]).expand(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cat([self.loud(y), self.quiet(y)], 1)


def test_readers_count_by_their_relative_errors() -> None:
    made = compressor(TwoReaders(), randn(200, 3), refit=False)
    assert made.analysis.scores[0].argmin() == 2


def test_the_readers_weights_are_fitted_unless_told_otherwise() -> None:
    network, _ = scaled()
    smooth = randn(460, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)  # so that channels go together
    x, others = smooth[:400], smooth[400:]
    fitted, plain = compressor(network, x).compress(0.5), compressor(network, x, refit=False).compress(0.5)
    assert fitted.plan == plain.plan
    kept: Kept = plain.plan.kept["2"]
    assert kept.out is not None
    assert kept.inputs is not None
    assert torch.equal(plain.network[2].weight, network[2].weight[list(kept.out)][:, list(kept.inputs)])
    with torch.no_grad():
        expected = network(others)
        assert (fitted.network(others) - expected).norm() < 0.9 * (plain.network(others) - expected).norm()


def test_grouped_layers_are_no_readers_but_who_reads_them_is() -> None:
    with seeded("test_thinet", "depthwise"):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Flatten(),
        ).eval()  # fmt: skip
    with torch.no_grad():
        network[0].bias.fill_(1), network[2].bias.fill_(1)  # so that no channel is dead
        network[4].weight[:, [2, 5]] *= 1e-3
    made = compressor(network, randn(30, 3, 5, 5))
    assert sorted(made.analysis.scores[0].argsort()[:2].tolist()) == [2, 5]


def test_without_data_or_with_values_that_are_no_numbers() -> None:
    network, _ = scaled()
    state = State(network, randn(1, 3, 8, 8))
    with pytest.raises(CompressionError, match="ThiNet with refit needs calibration data"):
        Compressor(thinet(ThiNetSettings()), state, count(network, state.example), None, generator("test_thinet"))
    with pytest.raises(CompressionError, match="layer '2': its responses to the calibration data must be finite"):
        compressor(network, torch.cat([state.example, torch.full((3, 3, 8, 8), torch.nan)]))
