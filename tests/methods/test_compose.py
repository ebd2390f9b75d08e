"""Compose: what several methods in a row leave, how it is filled and rebuilt, and which orders are refused."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress, compress_many, load_network, save_network
from experiment.errors import ConfigError, InfeasibleBudget
from experiment.layers.build import build, expand
from experiment.layers.masks import named_masks
from experiment.layers.plan import Plan, State
from experiment.measure import count, count_bytes
from experiment.methods import METHODS
from experiment.methods.base import Compressed, Compressor, make_method
from experiment.methods.configure import configure, spec_or_faults
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

Schemes = Sequence[tuple[str, dict[str, Any]]]

FAKE = """
from dataclasses import dataclass, field, replace
from typing import ClassVar

from experiment.layers.build import write_whole
from experiment.layers.plan import Plan
from experiment.registry import MethodEntry


@dataclass(frozen=True)
class BitsSettings:
    fixed_size: ClassVar[bool] = True
    dtype: str = "float16"


@dataclass(frozen=True)
class Bits:
    settings: BitsSettings

    def analyse(self, state, calibration, generator):
        return Plan(parameters=sum(p.numel() for p in state.network.parameters()))

    def plan(self, analysis, budget):
        return analysis

    def fill(self, built, state, analysis, plan):
        write_whole(built, state.network, plan)

    def finish(self, plan, network):
        dtypes = {name: {**detail, "dtype": self.settings.dtype} for name, detail in plan.details.items()}
        return replace(plan, details=dtypes, stages=())


ENTRY = MethodEntry("Bits", BitsSettings, "own_bits:Bits", "quantization")
"""


@pytest.fixture
def bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_bits.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_bits:ENTRY"


def listed(schemes: Schemes) -> list[dict[str, Any]]:
    return [{"name": name, "settings": settings} for name, settings in schemes]


def compressor(state: State, schemes: Schemes, seed: int = 0) -> Compressor:
    entry = METHODS["Compose"]
    method = make_method(entry, configure(entry, {"schemes": listed(schemes)}).settings)
    return Compressor(method, state, count(state.network, state.example), None, generator("test_compose", seed))


def composed(state: State, schemes: Schemes, keep: float = 1.0) -> Compressed:
    return compressor(state, schemes).compress(keep)


def by_hand(state: State, schemes: Schemes) -> nn.Module:
    """Every scheme on what the one before has left, by the public steps alone."""
    here, original = state, count(state.network, state.example)
    for name, settings in schemes:
        method = make_method(METHODS[name], configure(METHODS[name], settings).settings)
        made = Compressor(method, here, original, None, generator("x")).compress(1.0)
        here = expand(made.network, state.network, made.plan, state.example)
    return made.network


CHAINS: list[Schemes] = [
    [("Prune", {"density": 0.5}), ("Prune", {"density": 0.25})],
    [("StructurePrune", {"density": 0.6}), ("Prune", {"density": 0.1})],
    [("Prune", {"density": 0.5}), ("StructurePrune", {"density": 0.6})],
    [("StructurePrune", {"density": 0.8}), ("StructurePrune", {"density": 0.5}), ("Prune", {"density": 0.2})],
]


@pytest.mark.parametrize("name", ["cnn", "residual"])
@pytest.mark.parametrize("schemes", CHAINS)
def test_schemes_follow_each_other(state_of: Any, name: str, schemes: Schemes) -> None:
    state = state_of(name)
    made = composed(state, schemes)
    expected = by_hand(state, schemes)
    x = torch.cat([state.example, -state.example])
    torch.testing.assert_close(made.network(x), expected(x), rtol=1e-5, atol=1e-6)
    assert made.count == count(expected, state.example)
    assert_rebuilt(state, made)


def assert_rebuilt(state: State, made: Compressed) -> None:
    """From the plan as JSON and the state dict."""
    data = json.loads(json.dumps(made.plan.to_data()))
    rebuilt = build(state.network, Plan.from_data(data, state.network)).eval()
    rebuilt.load_state_dict(made.network.state_dict())
    assert torch.equal(rebuilt(state.example), made.network(state.example))


def test_the_second_density_is_of_the_original_and_its_support_within_the_first(state: State) -> None:
    weights = sum(m.weight.numel() for m in state.network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    both = named_masks(composed(state, CHAINS[0]).network)
    first = named_masks(composed(state, CHAINS[0][:1]).network)
    assert sum(int(mask.sum()) for mask in both.values()) == int(0.25 * weights)
    assert not any((both[name] & ~first[name]).any() for name in both)
    alone = named_masks(composed(state, [("Prune", {"density": 0.25})]).network)
    assert all(torch.equal(mask, alone[name]) for name, mask in both.items())


def test_low_rank_factors_of_what_filters_leave(state_of: Any) -> None:
    state = state_of("cnn")
    made = composed(state, [("FilterPrune", {"density": 0.6}), ("SVD", {})], keep=0.3)
    assert made.count.parameters == made.plan.parameters
    assert made.count.parameters <= 0.3 * count(state.network, state.example).parameters
    assert made.plan.factors
    assert any(sides.out for sides in made.plan.kept.values())
    left = expand(made.network, state.network, made.plan, state.example)
    torch.testing.assert_close(left.network(state.example), made.network(state.example), rtol=1e-4, atol=1e-4)
    assert_rebuilt(state, made)


def test_other_weights_go_through_all_plans(state: State) -> None:
    made = compressor(state, CHAINS[1])
    plan = made.compress(1.0).plan
    other = State(copy.deepcopy(state.network), state.example)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.add_(0.01)
    rewound = made.instantiate(plan, other)
    expected = expand(build(other.network, plan), state.network, plan, state.example).network
    found = expand(rewound, state.network, plan, state.example).network
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_plan_of_before_is_filled_after_others_were_made(state_of: Any) -> None:
    state, schemes = state_of("sequences"), [("Prune", {"density": 0.9}), ("WT", {})]
    made = compressor(state, schemes)
    first = made.compress(0.5)
    made.compress(0.2)
    again = made.instantiate(first.plan)
    assert torch.equal(again(state.example), first.network(state.example))


def test_random_schemes_repeat_with_the_seed_alone(state_of: Any) -> None:
    state, schemes = state_of("cnn"), [("Prune", {"density": 0.9}), ("Uniform", {})]
    outputs = [compressor(state, schemes, seed).compress(0.5).network(state.example) for seed in (0, 0, 1)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_keep_ratio_is_for_the_one_scheme_without_a_size(state_of: Any) -> None:
    net, x = state_of("cnn").network, state_of("cnn").example
    schemes = listed([("FilterPrune", {"density": 0.6}), ("WT", {})])
    total = count(net, x).parameters
    results = list(compress_many(net, "Compose", keeps=[0.4, 0.2], example=x, schemes=schemes))
    assert [result.parameters for result in results] == [int(0.4 * total), int(0.2 * total)]
    assert {"channels", "kept"} <= set(results[0].layers)


def test_sizes_of_their_own_above_the_budget_are_infeasible(state: State) -> None:
    made = composed(state, CHAINS[1])
    with pytest.raises(InfeasibleBudget) as caught:
        composed(state, CHAINS[1], keep=0.01)
    assert caught.value.smallest == made.count.parameters


@pytest.mark.parametrize("before", [CHAINS[1], [("StructurePrune", {"density": 0.6}), ("SVD", {})]])
def test_what_finishes_keeps_all_before_it(state: State, bits: str, before: Schemes) -> None:
    keep = 1.0 if before is CHAINS[1] else 0.5
    plain, made = composed(state, before, keep), composed(state, [*before, (bits, {"dtype": "bfloat16"})], keep)
    assert torch.equal(made.network(state.example), plain.network(state.example))
    assert made.plan.to_data() == plain.plan.to_data()
    assert {detail["dtype"] for detail in made.plan.details.values()} == {"bfloat16"}
    assert made.plan.stages, "which rewinding needs"


FIXED = {"density": 0.5}


@pytest.mark.parametrize(
    ("schemes", "path", "text"),
    [
        ([], ("schemes",), "must not be empty"),
        ([("Prun", {})], ("schemes", 0, "name"), "unknown method 'Prun'. Did you mean 'Prune'?"),
        ([("Prune", {"densty": 0.1})], ("schemes", 0, "settings", "densty"), "Did you mean 'density'?"),
        ([("WT", {}), ("Prune", {"density": 2.0})], ("schemes", 1, "settings", "density"), "must be"),
        ([("nowhere:ENTRY", {})], ("schemes", 0, "name"), "cannot import 'nowhere'"),
        ([("Compose", {"schemes": listed([("WT", {})])})], ("schemes", 0, "name"), "a Compose within a Compose"),
        ([("Fake", {}), ("WT", {})], ("schemes", 0, "name"), "has no effect: Fake does not change the network"),
        ([("WT", {}), ("FT", {})], ("schemes", 1), "both WT and FT take their size"),
        ([("SVD", {}), ("Prune", FIXED)], ("schemes", 0), "SVD cannot be followed by Prune"),
        ([("SVD", {}), ("FilterPrune", FIXED)], ("schemes", 0), "SVD cannot be followed by FilterPrune"),
        ([("Prune", FIXED), ("SVD", {})], ("schemes", 1), "SVD cannot follow Prune: the factors are dense"),
        ([("Blocks", {}), ("Prune", FIXED)], ("schemes", 0), "Blocks cannot be followed by Prune"),
        ([("own_bits:ENTRY", {}), ("Prune", FIXED)], ("schemes", 0), "Bits must be the last scheme"),
    ],
)
@pytest.mark.usefixtures("bits")
def test_what_cannot_be_chained_is_said_before_anything_is_computed(
    schemes: Schemes, path: tuple[str | int, ...], text: str
) -> None:
    ((found, told),) = spec_or_faults(METHODS["Compose"], {"schemes": listed(schemes)})
    assert found == path
    assert text in told


def test_unknown_keys_of_a_scheme_are_refused() -> None:
    (fault,) = spec_or_faults(METHODS["Compose"], {"schemes": [{"name": "WT", "setings": {}}]})
    text = "unknown key. Did you mean 'settings'? Known here: name, settings."
    assert fault == (("schemes", 0, "setings"), text)
    (fault,) = spec_or_faults(METHODS["Prune"], {"layers": {"fc*": {"density": 0.1, "align": 2}}})
    assert fault == (("layers", "fc*", "align"), "unknown key. Known here: density.")


def test_what_is_missing_and_what_is_no_mapping_is_said_in_plain_words() -> None:
    assert spec_or_faults(METHODS["Compose"], {}) == [(("schemes",), "is required and missing.")]
    (fault,) = spec_or_faults(METHODS["Prune"], {"layers": {"fc*": 0.2}})
    assert fault == (("layers", "fc*"), "must be a mapping (key: value). Got 0.2.")


def test_a_scheme_may_be_a_bare_name() -> None:
    entry = METHODS["Compose"]
    bare, whole = ({"schemes": ["WT", "Quantize"]}, {"schemes": [{"name": "WT"}, {"name": "Quantize"}]})
    assert configure(entry, bare).settings == configure(entry, whole).settings


def test_no_scheme_with_the_keep_ratio_means_a_size_of_its_own(bits: str) -> None:
    entry = METHODS["Compose"]
    sizes = [
        configure(entry, {"schemes": listed(schemes)}).fixed_size
        for schemes in ([("Prune", FIXED), (bits, {})], [("Prune", {}), (bits, {})])
    ]
    assert sizes == [True, False]


def test_a_keep_ratio_that_nothing_takes_is_refused(state_of: Any) -> None:
    state = state_of("cnn")
    x: Tensor = state.example
    with pytest.raises(ConfigError, match="keep has no effect: the settings of Compose determine the size"):
        compress(state.network, "Compose", keep=0.5, example=x, schemes=listed(CHAINS[0]))


@pytest.mark.parametrize(
    ("first", "values"),
    [
        ({"name": "Prune", "settings": {"density": 0.007}}, 2 * (3_013 + 580)),  # 239.96 times smaller than in float32
        ({"name": "SVD", "settings": {}}, None),
        ({"name": "StructurePrune", "settings": {"density": 0.3}}, None),
    ],
)
def test_sixteen_bits_of_what_is_left(first: dict[str, Any], values: int | None, tmp_path: Path) -> None:
    with seeded("lenet5"):
        network = make_network("lenet5", {}, (1, 28, 28), 10).eval()
    example = torch.rand(2, 1, 28, 28, generator=generator("example"))
    schemes = [first, {"name": "Quantize", "settings": {"dtype": "float16"}}]
    keep = {"keep": 0.3} if first["name"] == "SVD" else {}
    result = compress(network, "Compose", example=example, schemes=schemes, **keep)
    alone = compress(network, first["name"], example=example, **keep, **first["settings"])
    assert result.parameters == alone.parameters
    assert count_bytes(result.network).values == (values or 2 * alone.parameters)
    save_network(result, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt", network=network)
    assert torch.equal(loaded(example), result.network(example))
    torch.testing.assert_close(loaded(example), alone.network(example), rtol=0.01, atol=0.01)
    assert not torch.equal(loaded(example), alone.network(example))
