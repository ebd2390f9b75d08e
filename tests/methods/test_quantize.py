"""Quantize: which layers get which bits, what a state has lost stays lost, and other methods' plans take it on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.errors import CompressionError, ConfigError
from experiment.layers.build import expand
from experiment.layers.masks import bake_masks, named_masks, stored
from experiment.layers.plan import State
from experiment.layers.quantized_weights import named_dtypes, round_to
from experiment.measure import count, count_bytes
from experiment.methods import METHODS
from experiment.methods.base import Budget, Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.quantize import Quantize
from experiment.methods.settings import QuantizeSettings
from experiment.random_streams import generator

StateOf = Callable[[str], State]
COMPENSATED: dict[str, Any] = {"dtype": "int4", "group_size": 8, "rounding": "compensated"}


def compressor(state: State, label: str = "Quantize", **settings: Any) -> Compressor:
    entry = METHODS[label]
    inputs = torch.randn(8, *state.example.shape[1:], generator=generator("test_quantize"))
    method = make_method(entry, configure(entry, settings).settings)
    return Compressor(
        method, state, count(state.network, state.example), Calibration(inputs), generator("test_quantize", 1)
    )


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_and_biases_are_those_of_half_precision(state_of: StateOf, dtype: str, keep: float) -> None:
    state = state_of("cnn")
    made = compressor(state, dtype=dtype).compress(keep)
    plain = bake_masks(made.network)
    for name, module in state.network.named_modules():
        for which, parameter in module.named_parameters(prefix=name, recurse=False):
            rounded = isinstance(module, nn.Conv2d | nn.Linear)
            expected = parameter.to(getattr(torch, dtype)).float() if rounded else parameter
            assert torch.equal(plain.get_parameter(which), expected)
    assert made.count.parameters == made.plan.parameters == count(state.network, state.example).parameters


def test_patterns_choose_the_layers(state_of: StateOf) -> None:
    state = state_of("residual")
    settings = {"dtype": "int8", "ignore": ["stem.*", "fc"], "layers": {"conv2": "bfloat16", "conv1": "float16"}}
    plan = compressor(state, **settings).compress(1.0).plan
    assert plan.quantized == {"conv1": "float16", "conv2": "bfloat16", "shortcut.0": "int8"}
    learnt = {**settings, "layers": {"conv2": "codebook2", "conv1": "codebook256"}}
    plan_learnt = compressor(state, **learnt).compress(1.0).plan
    assert plan_learnt.quantized == {"conv1": "codebook256", "conv2": "codebook2", "shortcut.0": "int8"}
    grouped = compressor(state, **settings, group_size=4).compress(1.0).plan
    assert grouped.quantized == {"conv1": "float16", "conv2": "bfloat16", "shortcut.0": "int8/4"}
    assert plan.details["fc"] == plan.details["stem.0"] == {"dtype": "float32"}
    assert plan.details["conv2"] == {"dtype": "bfloat16"}
    settings["layers"] = {"con*": "bfloat16", "conv1": "float16"}  # keys of results do not know their order
    with pytest.raises(ConfigError, match="Quantize.layers.conv1: matches 'conv1', which another pattern matches too"):
        compressor(state, **settings)


@pytest.mark.parametrize("settings", [{"ignore": ["head"]}, {"layers": {"conv9": "int8"}}])
def test_a_pattern_that_names_nothing_is_refused(state_of: StateOf, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Quantize\.\w+: no layer is called '(head|conv9)'. The layers are stem.0"):
        compressor(state_of("residual"), **settings)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dtype"):
        configure("Quantize", {"dtype": "int3"})


@pytest.mark.parametrize("settings", [{"group_size": 32}, {"rounding": "compensated"}])
def test_settings_of_integers_alone_are_refused_for_other_dtypes(settings: dict[str, Any]) -> None:
    (key,) = settings
    for dtype in ("bfloat16", "codebook4"):
        with pytest.raises(ConfigError, match=f"^{key}: has no effect on {dtype}. Set dtype to int8 or int4"):
            configure("Quantize", {"dtype": dtype, **settings})
    configure("Quantize", {"layers": {"fc*": "int4"}, **settings})


@pytest.mark.parametrize(
    ("first", "dtype"),
    [("WT", "int8"), ("FT", "float16"), ("FT", "int4"), ("ALDS", "float16"), ("PCA", "int8"), ("WT", "codebook2")],
)
def test_after_another_method_what_is_gone_stays_gone(state_of: StateOf, first: str, dtype: str) -> None:
    state = state_of("cnn")
    made = compressor(state, first).compress(0.5)
    before, middle = made.plan, expand(made.network, state.network, made.plan, state.example)
    quantized = compressor(middle, dtype=dtype).compress(1.0)
    assert quantized.plan.kept == before.kept
    assert named_masks(quantized.network).keys() == {n for n in before.masks if not before.masks_factor(n)}
    for name, mask in middle.masks.items():
        assert torch.equal(named_masks(quantized.network)[name], mask)
    if first in ("WT", "FT"):
        assert quantized.count == made.count
    end = expand(quantized.network, state.network, quantized.plan, state.example)
    torch.testing.assert_close(end.network(state.example), quantized.network(state.example), rtol=1e-4, atol=1e-5)


def test_skipped_blocks_stay_skipped() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), nn.Flatten(), nn.Linear(64, 3)).eval()
    state = State(network, torch.ones(1, 3, 4, 4))
    made = compressor(state, "Blocks").compress(0.9)
    middle = expand(made.network, network, made.plan, state.example)
    quantized = compressor(middle).compress(1.0)
    assert quantized.plan.skipped == made.plan.skipped != ()
    assert quantized.count == made.count
    assert set(quantized.plan.quantized) == {"0", "4", *(f"{n}.conv" for n in ("1", "2") if n not in made.plan.skipped)}


class Block(nn.Module):
    """Passes its input on when its convolution gives nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


@pytest.mark.parametrize("label", ["WT", "FT", "ALDS", "PCA", "KLDS", "SVD", "Messi3", "ThiNet", "SiPP"])
@pytest.mark.parametrize("dtype", ["float16", "int8", "int4", "codebook4"])
def test_finishing_the_plan_of_any_method(state_of: StateOf, label: str, dtype: str) -> None:
    """Its structure with fewer bits; the method's own fill writes the masters, which are what it writes without."""
    state = state_of("cnn")
    made = compressor(state, label)
    plain = made.compress(0.6)
    plan = Quantize(QuantizeSettings(dtype=dtype)).finish(plain.plan, state.network)
    network = made.instantiate(plan)
    assert (plan.masks, plan.factors, plan.kept) == (plain.plan.masks, plain.plan.factors, plain.plan.kept)
    assert count(network, state.example) == plain.count
    dtypes = named_dtypes(network)
    assert dtypes
    baked, unrounded = bake_masks(network), bake_masks(plain.network)
    for name, parameter in unrounded.named_parameters():
        module, _, which = name.rpartition(".")
        now, written = baked.get_parameter(name), stored(network.get_submodule(module), which)
        if label not in ("KLDS", "ThiNet"):  # which fit a layer to what the rounded ones before it give
            assert torch.equal(written, parameter)
        live = named_masks(network).get(name)
        assert torch.equal(now, round_to(written, dtypes[name], live) if name in dtypes else written)
    assert count_bytes(network).values < count_bytes(plain.network).values


def test_fold_and_refit_write_behind_the_rounding(state_of: StateOf) -> None:
    state = state_of("residual")
    made = compressor(state, "FT", refit=True, fold="mean")
    plain = made.compress(0.6)
    rounded = made.instantiate(Quantize(QuantizeSettings()).finish(plain.plan, state.network))
    torch.testing.assert_close(rounded(state.example), plain.network(state.example), rtol=1e-2, atol=1e-2)
    assert not torch.equal(rounded(state.example), plain.network(state.example))


def test_any_budget_gives_the_same_network(state_of: StateOf) -> None:
    made = compressor(state_of("sequences"))
    assert made.method.plan(made.analysis, Budget("flops", 1, 10)) == made.compress(1.0).plan


def test_weights_that_are_not_finite_are_refused(state_of: StateOf) -> None:
    state = state_of("cnn")
    with torch.no_grad():
        state.network[0].weight[0] = torch.nan
    with pytest.raises(CompressionError, match="NaN or infinite"):
        compressor(state)


def test_in_python(state_of: StateOf) -> None:
    state = state_of("cnn")
    result = compress(state.network, "Quantize", keep=1.0, example=state.example, dtype="int8", ignore=["0"])
    assert list(result.layers["dtype"]) == ["float32", "int8", "int8", "int8"]
    assert result.keep_parameters == 1


def test_compensated_rounding_needs_data(state_of: StateOf) -> None:
    state = state_of("cnn")
    schemes = ["ALDS", {"name": "Quantize", "settings": COMPENSATED}]
    for call in ({"method": "Quantize", **COMPENSATED}, {"method": "Compose", "keep": 0.6, "schemes": schemes}):
        with pytest.raises(CompressionError, match="Quantize with compensated rounding needs calibration data"):
            compress(state.network, call.pop("method"), example=state.example, **call)


@pytest.mark.parametrize("name", ["residual", "mixed"])
def test_compensated_weights_are_on_the_grid(state_of: StateOf, name: str) -> None:
    state = state_of(name)
    one, other = (compressor(state, **{**COMPENSATED, "rounding": r}).compress(1.0) for r in ("compensated", "nearest"))
    assert (one.plan, one.count) == (other.plan, other.count)
    assert not torch.equal(one.network(state.example), other.network(state.example))
    for parameter, dtype in named_dtypes(one.network).items():
        module, _, which = parameter.rpartition(".")
        holder = one.network.get_submodule(module)
        assert torch.equal(getattr(holder, which), round_to(stored(holder, which), dtype))
        assert torch.equal(round_to(getattr(holder, which), dtype), getattr(holder, which))


@pytest.mark.parametrize("label", ["ALDS", "KLDS", "PCA", "WT", "FT"])
def test_compensated_after_another_method(state_of: StateOf, label: str) -> None:
    """The same structure and grid as with rounding to nearest, and outputs nearer to those before rounding."""
    state = state_of("cnn")
    inputs = torch.randn(200, *state.example.shape[1:], generator=generator("test_quantize", 2))
    unrounded = compressor(state, label).compress(0.6).network(inputs).detach()
    errors = []
    for rounding in ("nearest", "compensated"):
        last = {"name": "Quantize", "settings": {"dtype": "int4", "rounding": rounding}}
        made = compressor(state, "Compose", schemes=[{"name": label}, last]).compress(0.6)
        assert set(made.plan.quantized.values()) == {"int4"}
        errors.append(float((made.network(inputs).detach() - unrounded).square().mean()))
    assert errors[1] < errors[0]
