"""Encoders with factors of their own: built, expanded, saved, masked, rounded, ranked, refused where impossible."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.effective_rank import layer_ranks
from experiment.errors import CompressionError
from experiment.layers.build import build, expand, write_whole
from experiment.layers.factored_layers import FactoredConv, FactoredLayer, product
from experiment.layers.masks import bake_masks, named_masks
from experiment.layers.plan import Factors, Kept, Plan
from experiment.layers.quantized_weights import named_dtypes, round_to
from experiment.measure import count, count_bytes
from experiment.random_streams import generator, seeded
from experiment.training.penalty import make_penalties
from experiment.training.settings import PenaltySpec

EXAMPLE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
NESTED = {"2": Factors(4, bias=True), "2.encoder": Factors(3, folding=3)}
KEPT = {"0": Kept(out=(0, 2, 3, 5)), "2": Kept(inputs=(0, 2, 3, 5))}
PLANS = {
    "nested": Plan(factors=NESTED),
    "before its layer": Plan(factors=dict(reversed(NESTED.items()))),
    "grouped, split kernel": Plan(factors={"2": Factors(4, 2, 1, True), "2.encoder": Factors(2, 1, 2)}),
    "sliced": Plan(factors=NESTED, kept=KEPT),
    "masked": Plan(
        factors=NESTED,
        masks={"2.encoder.decoder.weight": torch.arange(4 * 3 * 9).reshape(4, 3, 3, 3) % 3 > 0},
    ),
    "rounded": Plan(factors=NESTED, quantized={"2": "int8"}),
    "linear": Plan(factors={"5": Factors(5, bias=True), "5.encoder": Factors(4)}),
}


def chain() -> nn.Sequential:
    with seeded("nested"):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
        ).eval()  # fmt: skip


def filled(network: nn.Module, plan: Plan) -> nn.Module:
    """Built, with random factors."""
    built = build(network, plan)
    write_whole(built, network, plan)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "coder" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator("nested", name)))
    return built.eval()


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


def test_plain_data_and_state_dict_rebuild_the_network(plan: Plan) -> None:
    compressed = filled(chain(), plan)
    read = Plan.from_data(json.loads(json.dumps(plan.to_data())), chain())
    assert read.nested == plan.nested
    assert read.decomposed == plan.decomposed
    rebuilt = build(chain().to("meta"), read).eval()
    rebuilt.load_state_dict(compressed.state_dict(), assign=True)
    assert torch.equal(rebuilt(EXAMPLE), compressed(EXAMPLE))
    assert count(build(chain(), read), EXAMPLE).flops == count(compressed, EXAMPLE).flops


def test_expanded_network_computes_the_same(plan: Plan) -> None:
    original = chain()
    compressed = filled(original, plan)
    state = expand(compressed, original, plan, EXAMPLE)
    torch.testing.assert_close(state.network(EXAMPLE), compressed(EXAMPLE), rtol=1e-4, atol=1e-4)
    assert state.network.state_dict().keys() == original.state_dict().keys()
    assert not state.masks
    again = build(state.network, plan)
    write_whole(again, state.network, plan)
    assert torch.equal(again[0].weight, compressed[0].weight)


def test_the_three_layers_are_plain_and_in_order() -> None:
    built = build(chain(), PLANS["nested"])
    inner, core, outer = built[2].encoder.encoder, built[2].encoder.decoder, built[2].decoder
    assert [tuple(m.weight.shape) for m in (inner, core, outer)] == [(3, 6, 1, 1), (4, 3, 3, 3), (8, 4, 1, 1)]
    assert [m.stride for m in (inner, core, outer)] == [(1, 1), (2, 2), (1, 1)]
    assert [m.padding for m in (inner, core, outer)] == [(0, 0), (1, 1), (0, 0)]
    assert [m.bias is None for m in (inner, core, outer)] == [True, True, False]
    counted = count(built, EXAMPLE)
    assert [counted.layers[f"2.{n}"].flops for n in ("encoder.encoder", "encoder.decoder", "decoder")] == [
        18 * 64, 108 * 16, 32 * 16,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_weight_of_every_kind_is_the_product_and_reaches_all_factors(kind: Any) -> None:
    dims, transposed = int(kind.__name__[-2]), "Transpose" in kind.__name__
    with seeded("kinds"):
        layer = kind(4, 6, 3, stride=2, padding=1, dilation=1)
    plan = Plan(factors={"": Factors(5, bias=True), "encoder": Factors(4, folding=2**dims - 1)})
    pair = filled(layer, plan)
    assert isinstance(pair.get_submodule("encoder"), FactoredConv)
    x = torch.randn(2, 4, *[7] * dims, generator=generator("x"))
    whole = copy.deepcopy(layer)
    with torch.no_grad():
        whole.weight.copy_(pair.weight)
        whole.bias.copy_(pair.bias)
    torch.testing.assert_close(pair(x), whole(x), rtol=1e-4, atol=1e-4)
    if transposed:
        size = [n + 1 for n in whole(x).shape[2:]]
        torch.testing.assert_close(pair(x, size), whole(x, size), rtol=1e-4, atol=1e-4)
    pair.weight.sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in pair.named_parameters() if "weight" in n)
    torch.testing.assert_close(expand(pair, layer, plan, x).network(x), pair(x), rtol=1e-4, atol=1e-4)


def test_nested_embedding_and_a_network_that_is_factored_already() -> None:
    layer, ids = nn.Embedding(9, 6), torch.arange(9)
    plan = Plan(factors={"": Factors(4), "encoder": Factors(3)})
    pair = filled(layer, plan)
    torch.testing.assert_close(pair(ids), pair.weight)
    torch.testing.assert_close(expand(pair, layer, plan, ids[None]).network(ids), pair(ids))
    once = filled(chain(), Plan(factors={"2": Factors(4, bias=True)}))
    again = Plan(factors={"2.encoder": Factors(4), "2.encoder.encoder": Factors(3, folding=3)})
    assert set(again.decomposed) == {"2.encoder"}
    twice = filled(once, again)
    assert twice[2].weight.shape == (8, 6, 3, 3)
    torch.testing.assert_close(expand(twice, once, again, EXAMPLE).network(EXAMPLE), twice(EXAMPLE))


def test_masks_rounding_ranks_and_penalties_see_every_factor() -> None:
    masked = filled(chain(), PLANS["masked"])
    assert list(named_masks(masked)) == ["2.encoder.decoder.weight"]
    full = count(build(chain(), PLANS["nested"]), EXAMPLE).parameters
    assert count(masked, EXAMPLE).parameters == full - 36
    factors = ["2.encoder.encoder", "2.encoder.decoder", "2.decoder"]
    rounded = filled(chain(), PLANS["rounded"])
    assert named_dtypes(rounded) == {f"{name}.weight": "int8" for name in factors}
    plain = bake_masks(rounded)
    core = rounded.get_submodule(factors[1]).parametrizations.weight.original
    assert torch.equal(plain.get_submodule(factors[1]).weight, round_to(core, "int8"))
    layers = [sum(p.numel() for p in rounded[i].parameters()) for i in (0, 5)]
    assert count_bytes(rounded).dense == 4 * sum(layers) + (18 + 108 + 32) + 4 * (3 + 4 + 8) + 4 * 8
    nested = filled(chain(), PLANS["nested"])
    ranks = {row.layer: row for row in layer_ranks(nested)}
    assert set(ranks) == {"0", "2", "5"}
    assert ranks["2"].full_rank == 8
    assert ranks["2"].effective_rank <= 4 + 1e-6
    for pattern, number in (("2", 3), ("2.encoder", 2), ("2.encoder.decoder", 1)):
        assert len(make_penalties(nested, (PenaltySpec(layers=(pattern,), l1=1.0),)).terms) == number


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_copied_pickled_scripted_and_exported(tmp_path: Path) -> None:
    network = filled(chain(), PLANS["nested"])
    expected, stored = network(EXAMPLE), io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    others = {
        "copied": copy.deepcopy(network),
        "pickled": torch.load(stored, weights_only=False),
        "scripted": torch.jit.script(network),
        "exported": torch.export.export(network, (EXAMPLE,)).module(),
    }
    for name, other in others.items():
        torch.testing.assert_close(other(EXAMPLE), expected, msg=name)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids))


ONE = {"2": Factors(2, bias=True)}


@pytest.mark.parametrize(
    ("network", "plan", "said"),
    [
        (chain(), Plan(factors={"2.encoder": Factors(1)}), "no '2.encoder'"),
        (chain(), Plan(factors={**ONE, "2.decoder": Factors(1)}), "no '2.decoder'"),
        (chain(), Plan(factors={**ONE, "0.encoder": Factors(1)}), "no '0.encoder'"),
        (chain(), Plan(factors={**ONE, "2.encoder": Factors(1, bias=True)}), "2.encoder: the encoder of a decomposed"),
        (
            chain(),
            Plan(factors={**ONE, "2.encoder": Factors(1), "2.encoder.encoder": Factors(1)}),
            "2.encoder.encoder: the encoder of a layer may have factors, but not",
        ),
        (chain(), Plan(factors={**ONE, "2.encoder": Factors(10, folding=3)}), "no factors of rank 10"),
        (chain(), Plan(factors={**ONE, "2.encoder": Factors(1, 4)}), "no factors of rank 1, 4 groups"),
        (
            chain(),
            Plan(factors=NESTED, masks={"2.encoder.weight": torch.ones(4, 6, 3, 3)}),
            "cannot be both masked and decomposed",
        ),
        (chain(), Plan(factors=NESTED, quantized={"2.encoder": "int8"}), "no '2.encoder'"),
        (Tied(), Plan(factors={n: Factors(2) for n in ("tokens", "head", "tokens.encoder")}), "share a weight"),
    ],
)
def test_plans_that_cannot_be_are_refused(network: nn.Module, plan: Plan, said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        build(network, plan)


def test_every_rank_up_to_the_full_one_is_allowed_and_no_file_can_ask_for_much_more() -> None:
    for outer, inner in ((8, 6), (1, 6), (2, 1)):
        built = build(chain(), Plan(factors={"2": Factors(outer), "2.encoder": Factors(inner, folding=3)}))
        assert isinstance(built[2], FactoredLayer)
        assert product(built[2]).shape == (8, 6, 3, 3)
    huge = Plan(factors={"2": Factors(8, bias=True), "2.encoder": Factors(2**30, folding=3)})
    with pytest.raises(CompressionError, match="no factors of rank 1,073,741,824"):
        build(chain(), huge)
