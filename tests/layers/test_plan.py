"""Biases that layers gain and masks on factors: built, saved as plain data, expanded, and gone where they must be."""

import json

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, expand, write_whole
from experiment.layers.factored_layers import write_factors
from experiment.layers.masks import named_masks
from experiment.layers.plan import Factors, Kept, Plan, State
from experiment.measure import count
from experiment.random_streams import generator, seeded

EXAMPLE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
KEPT = {"0": Kept(out=(0, 2, 5)), "1": Kept(out=(0, 2, 5)), "3": Kept(inputs=(0, 2, 5))}


def chain() -> nn.Sequential:
    """Convolutions and a readout, none of which has a bias."""
    with seeded("test_plan"):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False),
            nn.ReLU(), nn.Flatten(), nn.Linear(288, 10, bias=False),
        )  # fmt: skip
    return network.eval()


def encoder_mask(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator("test_plan", *shape)) < 0.5


PLANS = {
    "bias": Plan(biases=("0", "6")),
    "bias of a sliced layer": Plan(biases=("0",), kept=KEPT),
    "bias of factors": Plan(factors={"3": Factors(2, bias=True)}),
    "bias of sliced factors": Plan(factors={"3": Factors(2, bias=True)}, kept=KEPT),
    "masked encoder": Plan(
        factors={"3": Factors(2), "6": Factors(3, bias=True)},
        masks={
            "0.weight": encoder_mask((6, 3, 3, 3)),
            "3.encoder.weight": encoder_mask((2, 6, 3, 3)),
            "6.encoder.weight": encoder_mask((3, 288)),
        },
    ),
    "masked encoder and decoder of sliced factors": Plan(
        factors={"3": Factors(2, groups=3, folding=1)},
        masks={"3.encoder.weight": encoder_mask((6, 1, 1, 3)), "3.decoder.weight": encoder_mask((8, 6, 3, 1))},
        kept=KEPT,
    ),
}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


def trained(plan: Plan) -> nn.Module:
    """Built from the chain, all values random but those that masks hold at zero."""
    built = build(chain(), plan)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("test_plan", name)))
    return built.eval()


def test_plain_data_and_state_dict_rebuild_the_network(plan: Plan) -> None:
    compressed = trained(plan)
    read = Plan.from_data(json.loads(json.dumps(plan.to_data())), chain())
    assert {name: mask.shape for name, mask in read.masks.items()} == {n: m.shape for n, m in plan.masks.items()}
    rebuilt = build(chain(), read).eval()
    rebuilt.load_state_dict(compressed.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), compressed(EXAMPLE))
    assert count(rebuilt, EXAMPLE) == count(compressed, EXAMPLE)
    assert read.biases == plan.biases


def test_expanded_network_computes_the_same(plan: Plan) -> None:
    original, compressed = chain(), trained(plan)
    state = expand(compressed, original, plan, EXAMPLE)
    torch.testing.assert_close(state.network(EXAMPLE), compressed(EXAMPLE), rtol=1e-4, atol=1e-4)
    assert all(isinstance(m, nn.BatchNorm2d) or m.bias is None for m in original.children() if hasattr(m, "bias"))


def test_state_knows_its_own_biases_and_only_its_own_masks(plan: Plan) -> None:
    state = expand(trained(plan), chain(), plan, EXAMPLE)
    biased = {name for name, module in state.network.named_children() if isinstance(module, nn.Conv2d | nn.Linear)}
    biased = {name for name in biased if state.network.get_submodule(name).bias is not None}
    assert set(state.biases) == biased == {*plan.biases, *(n for n, f in plan.factors.items() if f.bias)}
    assert state.masks.keys() == plan.masks.keys() & dict(chain().named_parameters()).keys()


def test_gained_bias_is_paid_and_named_by_what_leaves_the_layer_whole(plan: Plan) -> None:
    state = expand(trained(plan), chain(), plan, EXAMPLE)
    left = Plan(masks=state.masks, kept=state.kept).starting_from(state)
    assert set(left.biases) == set(state.biases)
    features = {"0": 3 if "0" in plan.kept else 6, "3": 8, "6": 10}
    without = count(build(chain(), Plan(masks=state.masks, kept=state.kept)), EXAMPLE).parameters
    counted = count(build(chain(), left), EXAMPLE).parameters
    assert counted == without + sum(features[name] for name in state.biases)
    factored = Plan(factors={name: Factors(1, bias=True) for name in state.biases}).starting_from(state)
    assert factored.biases == ()


def test_weights_without_the_bias_leave_it_at_zero() -> None:
    """As when a cascade is rewound to the original's weights."""
    plan = Plan(factors={"3": Factors(2, bias=True)}, biases=("0",))
    built = build(chain(), plan)
    with torch.no_grad():
        built[0].bias.fill_(7)
        built[3].decoder.bias.fill_(7)
    again = build(chain(), plan)
    write_whole(again, chain(), plan)
    assert not again[0].bias.any()
    assert not again[3].decoder.bias.any()
    state = expand(built, chain(), plan, EXAMPLE)
    write_whole(again, state.network, plan)
    assert (again[0].bias == 7).all()
    assert (again[3].decoder.bias == 7).all()


def test_factors_are_written_behind_their_masks() -> None:
    plan = PLANS["masked encoder"]
    built = build(chain(), plan)
    U, V = (torch.randn(shape, generator=generator("factors")) for shape in ((1, 8, 2), (1, 2, 54)))
    write_factors(built[3], U, V)
    mask = plan.masks["3.encoder.weight"]
    assert torch.equal(built[3].encoder.weight, V.reshape(2, 6, 3, 3) * mask)
    assert torch.equal(built[3].encoder.parametrizations.weight.original, V.reshape(2, 6, 3, 3) * mask)
    assert torch.equal(built[3].decoder.weight, U.reshape(8, 2, 1, 1))
    assert torch.equal(named_masks(built)["3.encoder.weight"], mask)


def test_masked_factors_are_counted_without_their_zeros() -> None:
    plan = PLANS["masked encoder"]
    masks, counted = plan.masks, count(trained(plan), EXAMPLE)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    sizes = kept["0.weight"] + 12 + kept["3.encoder.weight"] + 8 * 2 + kept["6.encoder.weight"] + 10 * 3 + 10
    assert counted.parameters == sizes
    encoder = counted.layers["3.encoder"]
    assert (encoder.flops_unmasked, encoder.flops) == (kept["3.encoder.weight"] * 36, 2 * 54 * 36)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(biases=("9",)), "no '9'"),
        (Plan(biases=("1",)), "1: a BatchNorm2d cannot be given a bias"),
        (Plan(factors={"3": Factors(1)}, biases=("3",)), "3: the bias of a decomposed layer"),
        (Plan(masks={"3.encoder.weight": torch.ones(1)}), "no '3.encoder'"),
        (Plan(factors={"3": Factors(1)}, masks={"3.weight": torch.ones(1)}), "cannot be both masked and decomposed"),
    ],
)
def test_plan_that_contradicts_itself_or_the_network_is_refused(plan: Plan, said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        build(chain(), plan)


def test_bias_trains_where_the_weight_does() -> None:
    frozen = chain().requires_grad_(False)
    assert not build(frozen, Plan(biases=("0",)))[0].bias.requires_grad
    assert build(chain(), Plan(biases=("0",)))[0].bias.requires_grad
    assert State(frozen, EXAMPLE).biases == ()
