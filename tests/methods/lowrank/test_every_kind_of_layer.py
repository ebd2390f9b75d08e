"""Every low-rank method on a small language model with layers of every kind, two of them tied, and padded inputs."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.inputs import batch_size, take
from experiment.layers.build import build, expand
from experiment.layers.compressible import trace_layers
from experiment.layers.factored_layers import FactoredEmbedding
from experiment.layers.plan import Plan, State
from experiment.measure import count
from experiment.methods import METHODS
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.data.fisher import gather as gather_moments
from experiment.methods.data.responses import gather
from experiment.methods.data.sensitivity import weight_sensitivities
from experiment.methods.lowrank.layer_options import LESS_WORK, divisors, group_numbers
from experiment.random_streams import generator, seeded
from experiment.run.disk.load_weights import load_state

LABELS = [label for label, entry in METHODS.items() if entry.kind == "lowrank"]
VOCABULARY, WIDTH, LENGTH = 40, 16, 10


class Model(nn.Module):
    """Tokens, a sequence, images and volumes in turn; the output layer reads the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.Embedding(LENGTH, WIDTH)
        self.along = nn.Conv1d(WIDTH, 24, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose1d(24, WIDTH, 4, stride=2, padding=1, output_padding=1, groups=2)
        self.image = nn.Conv2d(4, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding="same", groups=4, dilation=2, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 5, stride=2, padding=2, groups=24)
        self.volume = nn.Conv3d(12, 12, 3, padding=1)
        self.deep = nn.ConvTranspose3d(12, 8, (1, 3, 2), stride=(1, 1, 2))
        self.mix = nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        x = x * attention_mask[..., None]
        y = self.up(torch.relu(self.along(x.mT)))[..., : x.shape[1]].mT
        z = torch.relu(self.grouped(torch.relu(self.image(x.unflatten(2, (4, 4)).transpose(1, 2)))))
        z = self.deep(torch.relu(self.volume(self.depthwise(z).unflatten(1, (12, 2))))).mean((2, 3, 4))
        return self.head(x + y + torch.tanh(self.mix(z))[:, None])


def make_state(samples: int = 1) -> State:
    """Sequences of different lengths; what the padding holds is arbitrary."""
    with seeded("tests/kinds"):
        network = Model().eval()
        nn.init.normal_(network.tokens.weight)
    draw = generator("tests/kinds", samples)
    ids = torch.randint(1, VOCABULARY, (samples, LENGTH), generator=draw)
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH, 6, 8, 4] * samples)[:samples, None]).long()
    return State(network, {"input_ids": ids, "attention_mask": mask})


def compressor(label: str, state: State, **settings: object) -> Compressor:
    spec = configure(label, ({"images": 8, "points": 3} if label == "KLDS" else {}) | settings)
    method = make_method(spec.entry, spec.settings)
    data = Calibration(make_state(12).example)
    return Compressor(method, state, count(state.network, state.example), data, generator("kinds"))


@pytest.mark.parametrize("label", LABELS)
def test_every_method_plans_builds_trains_and_saves_every_kind(label: str) -> None:
    state = make_state()
    made = compressor(label, state)
    whole = made.compress(0.5, "flops")
    assert whole.count.flops_unmasked <= 0.5 * made.original.flops
    assert "positions" not in whole.plan.factors  # a lookup costs no multiply-adds
    compressed = made.compress(0.5)
    plan, network = compressed.plan, compressed.network
    assert plan.parameters == compressed.count.parameters <= 0.5 * made.original.parameters
    assert {"tokens", "along", "volume", "image", "mix"} & plan.factors.keys()

    rebuilt = build(state.network, Plan.from_data(json.loads(json.dumps(plan.to_data())), state.network)).eval()
    rebuilt.load_state_dict(network.state_dict())
    expected = network(**state.example)
    torch.testing.assert_close(rebuilt(**state.example), expected)
    expanded = expand(network, state.network, plan, state.example)
    torch.testing.assert_close(expanded.network(**state.example), expected, rtol=1e-4, atol=1e-4)

    trained = rebuilt.train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(**state.example).square().mean().backward()
    optimizer.step()
    again = copy.deepcopy(trained)
    assert count(again, state.example) == compressed.count
    if isinstance(again.tokens, FactoredEmbedding):
        assert again.head.decoder.weight is again.tokens.encoder.weight
        assert again.head.encoder.weight is again.tokens.decoder.weight
        torch.testing.assert_close(again.head.weight, again.tokens.weight)
        assert not torch.equal(again.tokens.weight, expanded.network.tokens.weight)
    else:
        assert again.head.weight is again.tokens.weight


@pytest.mark.parametrize("label", ["SVD", "ALDS", "PCA", "KLDS"])
def test_tied_layers_follow_with_the_best_factors_of_their_weight(label: str) -> None:
    state = make_state()
    made = compressor(label, state, layers=["tokens"])
    plan = made.compress(0.96).plan
    assert plan.factors["head"].rank == plan.factors["tokens"].rank > 3
    assert plan.factors["head"].bias
    network = made.instantiate(plan)
    if label in ("SVD", "ALDS"):
        U, S, Vh = np.linalg.svd(state.network.tokens.weight.detach().double().numpy(), full_matrices=False)
        rank = plan.factors["tokens"].rank
        np.testing.assert_allclose(network.tokens.weight.detach(), (U[:, :rank] * S[:rank]) @ Vh[:rank], atol=1e-5)
    small = torch.eye(WIDTH)
    torch.testing.assert_close(network.head(small) - network.head.bias, network.tokens.weight.T)


def test_padding_counts_in_no_statistic() -> None:
    """Sequences with padding give what the same sequences give one by one, cut to their lengths."""
    torch.manual_seed(0)
    embed, first, second = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 7), nn.Linear(7, VOCABULARY)

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first, self.second = embed, first, second

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.second(torch.tanh(self.first(self.embed(input_ids))))

    network, padded = Rows().eval(), make_state(5).example
    lengths = padded["attention_mask"].sum(1).tolist()
    cut = [padded["input_ids"][i, :n] for i, n in enumerate(lengths)]
    together = {"input_ids": torch.cat(cut)[None]}
    one, other = gather(network, ["embed", "first"], padded), gather(network, ["embed", "first"], together)
    for name in one:
        torch.testing.assert_close(one[name].covariance, other[name].covariance)
        torch.testing.assert_close(one[name].inputs[0][1], other[name].inputs[0][1])
        assert one[name].inputs[0][0] == sum(lengths)
    slicings = {"embed": [(1, 0)], "first": [(1, 0)], "second": [(1, 0)]}
    moments = [gather_moments(network, slicings, data, generator("labels")) for data in (padded, together)]
    for name in slicings:
        assert moments[0][name].places[1, 0] == sum(lengths)
        torch.testing.assert_close(moments[0][name].grams[1, 0], moments[1][name].grams[1, 0])
        torch.testing.assert_close(moments[0][name].gradient, moments[1][name].gradient)
    weights = {name: network.get_parameter(f"{name}.weight") for name in slicings}
    shares = [weight_sensitivities(network, weights, data) for data in (padded, together)]
    for name in slicings:
        torch.testing.assert_close(shares[0][name], shares[1][name])
    means = weight_sensitivities(network, weights, padded, "mean")
    alone = [weight_sensitivities(network, weights, {"input_ids": row[None]}, "mean") for row in cut]
    for name in slicings:
        torch.testing.assert_close(means[name], torch.stack([own[name] for own in alone]).amax(0))
    assert batch_size(take(padded, slice(2))) == 2


def test_tied_factors_stay_tied_when_a_network_on_meta_takes_the_tensors_of_a_file(tmp_path: Path) -> None:
    state = make_state()
    compressed = compressor("SVD", state, layers=["tokens"]).compress(0.96)
    with torch.device("meta"):
        loaded = build(Model(), compressed.plan).eval()
    load_state(loaded, compressed.network.state_dict(), tmp_path)
    assert loaded.head.decoder.weight is loaded.tokens.encoder.weight
    assert loaded.head.encoder.weight is loaded.tokens.decoder.weight
    assert torch.equal(loaded.head.weight, compressed.network.head.weight)


def test_a_layer_with_too_many_numbers_of_groups_keeps_the_cheap_ones() -> None:
    def numbers(outputs: int, inputs: int) -> list[int]:
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs)
            return group_numbers(trace_layers(layer, torch.zeros(1, inputs))[""])

    assert numbers(4096, 9216) == divisors(9216)
    kept = numbers(4096, 25088)  # VGG's
    assert kept[0] == 1
    assert kept[-1] == 25088
    assert len(kept) < len(divisors(25088))
    assert sum(k * min(4096, 25088 // k) ** 3 for k in kept) <= LESS_WORK
