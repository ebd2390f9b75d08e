"""Weights in few bits: on the grid whatever trains them, with gradients as if they were not, and plain where baked."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.build import build, expand, write_whole
from experiment.layers.masks import (
    add_masks,
    bake_masks,
    named_masks,
    plain_name,
    same_support,
    stored,
    write_parameter,
)
from experiment.layers.plan import Factors, Kept, Plan
from experiment.layers.quantized_weights import Quantized, add_quantized, decode, encode, named_dtypes, round_to
from experiment.random_streams import generator, seeded

SCALED = ("float16", "bfloat16", "int8", "int4", "int8/5", "int4/4", "int4/99")
CODEBOOKS = ("codebook2", "codebook4", "codebook16", "codebook256")
DTYPES = SCALED + CODEBOOKS
EXAMPLE = torch.randn(1, 3, 8, 8, generator=generator("test_quantized"))


def weights(rows: int = 400, columns: int = 37) -> Tensor:
    """Channels of very different sizes."""
    stream = generator("test_quantized", rows)
    return torch.randn(rows, columns, generator=stream) * 10 ** torch.randn(rows, 1, generator=stream)


def chain() -> nn.Sequential:
    with seeded("test_quantized"):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(288, 10),
        )  # fmt: skip
    return network.eval()


def mask_of(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("test_quantized", *shape)) < 0.5


PLANS = {
    "all of float16": Plan(quantized={"0": "float16", "3": "float16", "6": "float16"}),
    "mixed": Plan(quantized={"0": "bfloat16", "6": "int8"}),
    "masked": Plan(
        masks={"0.weight": mask_of(6, 3, 3, 3), "6.weight": mask_of(10, 288), "6.bias": mask_of(10)},
        quantized={"0": "int8", "6": "float16"},
    ),
    "groups": Plan(masks={"6.weight": mask_of(10, 288)}, quantized={"0": "int4", "3": "int8/7", "6": "int4/32"}),
    "codebooks": Plan(
        masks={"0.weight": mask_of(6, 3, 3, 3), "6.weight": mask_of(10, 288)},
        quantized={"0": "codebook2", "3": "codebook4", "6": "codebook256"},
    ),
    "codebooks of factors": Plan(
        factors={"3": Factors(2, bias=True), "6": Factors(3, groups=2, bias=True)},
        masks={"3.encoder.weight": mask_of(2, 6, 3, 3)},
        quantized={"3": "codebook2", "6": "codebook16"},
    ),
    "factors": Plan(
        factors={"3": Factors(2, groups=3, folding=1, bias=True), "6": Factors(3, groups=2, bias=True)},
        masks={"3.encoder.weight": mask_of(6, 2, 1, 3)},
        quantized={"3": "int4/4", "6": "bfloat16"},
    ),
    "sliced": Plan(
        kept={"0": Kept(out=(0, 2, 5)), "1": Kept(out=(0, 2, 5)), "3": Kept(inputs=(0, 2, 5))},
        quantized={"0": "int8", "3": "float16"},
    ),
}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


def trained(plan: Plan) -> nn.Module:
    built = build(chain(), plan)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("test_quantized", name)))
    return built.eval()


def test_float16_rounds_as_numpy_does_and_bfloat16_to_8_bits_of_mantissa() -> None:
    w = weights()
    assert np.array_equal(round_to(w, "float16").numpy(), w.numpy().astype(np.float16).astype(np.float32))
    mantissa, exponent = np.frexp(w.numpy())
    assert np.array_equal(round_to(w, "bfloat16").numpy(), np.ldexp(np.rint(mantissa * 256) / 256, exponent))


@pytest.mark.parametrize("dtype", ["int8", "int4", "int8/8", "int4/8", "int4/37", "int4/50"])
def test_integers_against_their_definition(dtype: str) -> None:
    w, largest = weights(), 127 if dtype.startswith("int8") else 7
    size = min(int(dtype.partition("/")[2] or 37), 37)
    codes, scales = encode(w, dtype)
    assert scales is not None
    assert scales.shape == ((400, -(-37 // size)) if "/" in dtype else (400,))
    for i, start in enumerate(range(0, 37, size)):
        part, own = w.numpy()[:, start : start + size], codes.numpy()[:, start : start + size]
        scale = scales.reshape(400, -1).numpy()[:, i, None]
        np.testing.assert_allclose(scale[:, 0], np.abs(part).max(1) / largest, rtol=2**-17)
        assert np.array_equal(own, np.rint(part / scale))
        assert (np.abs(own).max(1) == largest).all()
        product = own.astype(np.float64) * scale.astype(np.float64)
        rounded = round_to(w, dtype).double().numpy()[:, start : start + size]
        assert np.array_equal(rounded, product), "codes times scale are exact in float32"
        assert (np.abs(product - part) <= scale * 0.5001).all()


@pytest.mark.parametrize("dtype", ["int8", "int4/4"])
def test_kernel_elements_of_a_convolution_count_as_inputs(dtype: str) -> None:
    w = weights(40, 18)
    assert torch.equal(round_to(w.reshape(40, 2, 3, 3), dtype).flatten(1), round_to(w, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_twice_changes_nothing(dtype: str) -> None:
    once = round_to(weights(20_000, 5), dtype)
    assert torch.equal(round_to(once, dtype), once)


@pytest.mark.parametrize("dtype", SCALED)
def test_zeros_and_what_is_not_finite(dtype: str) -> None:
    w = weights(5, 4)
    w[0], w[1], w[2, 1], w[3, 2] = 0, 1e-42, torch.nan, torch.inf
    rounded = round_to(w, dtype)
    assert not rounded[0].any()
    assert rounded[1].abs().max() <= 1.01e-42
    assert torch.isfinite(rounded[[0, 1, 4]]).all()
    assert torch.isnan(rounded[2, 1])
    assert not torch.isfinite(rounded[3, 2])
    assert not torch.isfinite(Quantized(dtype)(w)[[2, 3], [1, 2]]).any()


@pytest.mark.parametrize("dtype", CODEBOOKS)
def test_a_codebook_is_that_of_the_whole_tensor(dtype: str) -> None:
    size = int(dtype.removeprefix("codebook"))
    w = weights(40, 37)
    codes, table = encode(w, dtype)
    assert table is not None
    assert (codes.shape, table.shape) == (w.shape, (size,))
    assert len(round_to(w, dtype).unique()) == size
    assert torch.equal(round_to(w.reshape(40, 37, 1, 1), dtype).flatten(1), round_to(w, dtype))
    assert not round_to(torch.zeros(5, 4), dtype).any()
    for value in (torch.nan, torch.inf, -torch.inf):
        w[3, 2] = value
        assert torch.isnan(round_to(w, dtype)).all()
        assert torch.isnan(Quantized(dtype)(w)).all()
    assert encode(w.to("meta"), dtype)[0].is_meta


@pytest.mark.parametrize("dtype", CODEBOOKS)
@pytest.mark.parametrize("first", ["mask", "rounding"])
def test_masked_weights_stay_zero_and_take_no_value_of_a_codebook(dtype: str, first: str) -> None:
    """A zero that is not masked is a value like any other, and what stands behind the mask has no say."""
    size = int(dtype.removeprefix("codebook"))
    layer, mask, w = nn.Linear(288, 10), mask_of(10, 288), 1 + weights(10, 288).abs()
    w[mask.nonzero()[0, 0], mask.nonzero()[0, 1]] = 0
    with torch.no_grad():
        layer.weight.copy_(w)
    steps = [lambda: add_masks(layer, {"weight": mask}), lambda: add_quantized(layer, {"": dtype})]
    for step in steps if first == "mask" else steps[::-1]:
        step()
    expected = torch.zeros(10, 288)
    expected[mask] = round_to(w[mask][None], dtype)[0]
    assert torch.equal(layer.weight, expected)
    assert len(layer.weight[mask].unique()) == size
    assert layer.weight[mask].min() > 0 or size > 4  # one zero of many is not worth an entry of few
    for other in (copy.deepcopy(layer), bake_masks(layer)):
        assert torch.equal(other.weight, expected)
    with torch.no_grad():
        stored(layer, "weight").masked_fill_(~mask, 1e6)
    assert torch.equal(layer.weight, expected)
    fewer = mask & mask_of(10, 288, 1)[..., 0]
    add_masks(layer, {"weight": fewer})
    assert not layer.weight[~fewer].any()
    assert len(layer.weight[fewer].unique()) == size
    add_masks(layer, {"weight": torch.zeros(10, 288)})
    assert not layer.weight.any()


def test_a_compiled_network_computes_with_its_codebooks() -> None:
    layer = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    add_masks(layer, {"0.weight": mask_of(20, 30)})
    add_quantized(layer, {"0": "codebook4", "2": "codebook16"})
    x = torch.randn(7, 30, generator=generator("x"))
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


def test_float16_keeps_to_its_finite_range() -> None:
    w = torch.tensor([1e6, -1e38, 65504.0, 65519.0, 1e-8])
    assert round_to(w, "float16").tolist() == [65504, -65504, 65504, 65504, 0]
    assert torch.isfinite(round_to(torch.full((3,), torch.finfo(torch.float32).max), "bfloat16")).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_pass_straight_through_to_the_master(dtype: str) -> None:
    layer, plain = nn.Linear(5, 4), nn.Linear(5, 4)
    add_quantized(layer, {"": dtype})
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    x = torch.randn(7, 5, generator=generator("x"))
    assert torch.equal(layer(x), plain(x))
    for network in (layer, plain):
        network(x).square().sum().backward()
    assert torch.equal(stored(layer, "weight").grad, plain.weight.grad)
    assert torch.equal(stored(layer, "bias").grad, plain.bias.grad)


def test_a_master_moves_by_less_than_the_grid_and_arrives() -> None:
    """As quantization-aware training needs it: small steps add up although what computes stays until they do."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, 3.0, 0.0, 0.0]]))
    add_quantized(layer, {"": "int8"})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen = []
    for _ in range(10):
        seen.append(layer.weight[0, 1].item())
        optimizer.zero_grad()
        (-layer.weight[0, 1]).backward()
        optimizer.step()
    assert seen == [3.0] * 5 + [4.0] * 5 or seen == [3.0] * 6 + [4.0] * 4


def test_which_parameters_are_rounded(plan: Plan) -> None:
    expected = {}
    for layer, dtype in plan.quantized.items():
        parts = (f"{layer}.encoder", f"{layer}.decoder") if layer in plan.factors else (layer,)
        parameters = dict(build(chain(), Plan(factors=plan.factors, kept=plan.kept)).named_parameters())
        for name in (f"{part}.{which}" for part in parts for which in ("weight", "bias")):
            if name in parameters and (name.endswith("weight") or "float" in dtype):
                expected[name] = dtype
    built = build(chain(), plan)
    assert named_dtypes(built) == expected
    assert named_masks(built).keys() == plan.masks.keys()
    assert {plain_name(name) for name, _ in built.named_parameters()} >= set(expected)


def test_masters_stay_what_was_written(plan: Plan) -> None:
    built = build(chain(), plan)
    write_whole(built, chain(), plan)
    for name in plan.quantized.keys() - plan.factors.keys() - plan.kept.keys():
        original = chain().get_submodule(name).weight
        mask = plan.masks.get(f"{name}.weight", torch.ones_like(original))
        assert torch.equal(stored(built.get_submodule(name), "weight"), original * mask)
    for name in plan.factors.keys() & plan.quantized.keys():
        decoder = built.get_submodule(name).decoder
        bias = chain().get_submodule(name).bias
        assert torch.equal(stored(decoder, "bias"), torch.zeros(8) if bias is None else bias)
        write_parameter(decoder, "bias", torch.full_like(stored(decoder, "bias"), 1 / 3))
        kept = round_to(torch.tensor(1 / 3), "bfloat16") if plan.quantized[name] == "bfloat16" else torch.tensor(1 / 3)
        assert torch.equal(decoder.bias, kept.expand_as(decoder.bias))


def test_baked_networks_are_plain_and_compute_the_same(plan: Plan) -> None:
    made = trained(plan)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    plain = bake_masks(made)
    assert torch.equal(plain(EXAMPLE), made(EXAMPLE))
    assert {type(m) for m in plain.modules()} <= {type(m) for m in build(chain(), Plan(factors=plan.factors)).modules()}
    assert not any("parametrizations" in name for name in plain.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert named_dtypes(made)


def test_copies_are_their_own(plan: Plan) -> None:
    made = build(chain(), plan)
    copied = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert named_dtypes(copied) == named_dtypes(made)
    bake_masks(copied)
    assert made(EXAMPLE).any()
    masked = nn.Sequential(nn.Linear(4, 3))
    add_masks(masked, {"0.weight": torch.ones(3, 4)})
    other = copy.deepcopy(masked)
    add_quantized(other, {"0": "float16"})
    assert named_dtypes(masked) == {}
    assert masked(torch.ones(1, 4)).requires_grad


def test_expanded_networks_hold_the_rounded_weights(plan: Plan) -> None:
    made = trained(plan)
    state = expand(made, chain(), plan, EXAMPLE)
    torch.testing.assert_close(state.network(EXAMPLE), made(EXAMPLE), rtol=1e-4, atol=1e-4)
    for name in plan.quantized.keys() - plan.factors.keys() - plan.kept.keys():
        assert torch.equal(state.network.get_submodule(name).weight, made.get_submodule(name).weight)
    assert not named_dtypes(state.network)


def test_masks_may_come_before_and_after() -> None:
    first, second = chain(), chain()
    mask = mask_of(10, 288)
    add_masks(first, {"6.weight": mask})
    add_quantized(first, {"6": "int8"})
    add_quantized(second, {"6": "int8"})
    add_masks(second, {"6.weight": mask})
    assert torch.equal(first(EXAMPLE), second(EXAMPLE))
    assert torch.equal(named_masks(second)["6.weight"], mask)
    assert torch.equal(first[6].weight, round_to(chain()[6].weight * mask, "int8"))


def test_other_bits_are_another_support() -> None:
    plans = [Plan(), Plan(quantized={"0": "int8"}), Plan(quantized={"0": "float16"}), Plan(quantized={"3": "int8"})]
    for i, one in enumerate(plans):
        for j, two in enumerate(plans):
            assert same_support(build(chain(), one), build(chain(), two)) == (i == j)


@pytest.mark.parametrize(
    ("quantized", "match"),
    [
        ({"1": "int8"}, "1: only matrices can be quantized. Got a BatchNorm2d"),
        (
            {"0": "int3"},
            "0: dtype must be one of float16, bfloat16, int8, int4, codebook2, .*, or an integer with .* Got 'int3'",
        ),
        ({"0": "int4/0"}, "Got 'int4/0'"),
        ({"0": "float16/4"}, "Got 'float16/4'"),
        ({"0": "codebook8"}, "Got 'codebook8'"),
        ({"0": "codebook4/8"}, "Got 'codebook4/8'"),
        ({"7": "int8"}, "this one has no '7'"),
    ],
)
def test_what_cannot_be_quantized_is_refused(quantized: dict[str, str], match: str) -> None:
    with pytest.raises(CompressionError, match=match):
        build(chain(), Plan(quantized=quantized))


def test_plain_data(plan: Plan) -> None:
    assert Plan.from_data(plan.to_data(), chain()).quantized == plan.quantized


def test_codes_and_back() -> None:
    for dtype in DTYPES:
        codes, scales = encode(weights(), dtype)
        assert codes.element_size() == (2 if "float" in dtype else 1)
        assert torch.equal(decode(codes, scales, dtype), round_to(weights(), dtype))


@pytest.mark.filterwarnings("error")
def test_codes_have_the_memory_format_of_the_weight() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=generator("format"))
    last = weight.contiguous(memory_format=torch.channels_last)
    (codes, table), (other, same) = encode(weight, "codebook4"), encode(last, "codebook4")
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(codes, other)
    assert torch.equal(table, same)
