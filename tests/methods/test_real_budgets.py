"""Budgets in any quantities, over methods of all families: met, used up, or refused with the nearest."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch
from torch import nn

from experiment.config.schema.budget import UNITS, Budget
from experiment.errors import InfeasibleBudget
from experiment.layers.build import build
from experiment.layers.masks import bake_masks
from experiment.layers.plan import Plan, State
from experiment.measure import count, count_bytes
from experiment.measure.forward_pieces import Leaf, Operation
from experiment.measure.latency import Layout
from experiment.measure.latency_model import Arranged, LatencyModel, LatencyTable
from experiment.measure.memory import peak_memory
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import configure
from experiment.methods.meter import Meter
from experiment.methods.real_budgets import _Search, compress_within
from experiment.random_streams import generator

pytestmark = pytest.mark.slow

LABELS = ("WT", "SiPP", "FT", "PFP", "ALDS", "ALDS-K", "KLDS", "SVD", "PCA", "Tucker", "Mix")
SETTINGS = {
    "Mix": {"points": 2, "images": 8},
    "Compose": {"schemes": ["ALDS", {"name": "Quantize", "settings": {"dtype": "int8", "ignore": ["0"]}}]},
}
SHAPING = tuple(label for label in LABELS if label not in ("WT", "SiPP"))
SLOWER = 1.25  # the "measured" over the predicted time


class CountedTable(LatencyTable):
    """A device on which a layer takes a microsecond, and one more for each weight."""

    def measure(self, layer: Leaf | Operation, widths: tuple[int, ...], among: int) -> float:
        module, _ = layer.make(widths)
        return 1e-3 * (1 + (sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else 0))

    def keep(self) -> None:
        pass


def counted(network: nn.Module, example: torch.Tensor) -> float:
    return sum(1e-3 * (1 + sum(p.numel() for p in m.parameters())) for m in network.modules() if not any(m.children()))


@pytest.fixture
def without_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency as CountedTable has it; a measurement gives SLOWER times as much."""

    def of(network: nn.Module, example: torch.Tensor, batch: int, table: LatencyTable) -> LatencyModel:
        own = Arranged("contiguous", network, example, 1.0, 0.0, 1)
        ms = LatencyModel((own,), table).predict(network) * SLOWER
        return LatencyModel((replace(own, ms=ms),), table)

    monkeypatch.setattr(LatencyModel, "of", staticmethod(of))
    monkeypatch.setattr(LatencyModel, "measure", lambda model, network: SLOWER * model.predict(network))


@pytest.fixture(scope="module")
def made_of(state_of: Callable[[str], State]) -> Callable[..., Compressor]:
    made: dict[str, Compressor] = {}

    def compressor(label: str, settings: dict[str, object] | None = None) -> Compressor:
        key = f"{label} {settings}"
        if key not in made:
            state = state_of("cnn")
            inputs = torch.randn(16, *state.example.shape[1:], generator=generator("test_real_budgets"))
            spec = configure(label, settings or SETTINGS.get(label, {}))
            calibration = Calibration(inputs, torch.zeros(16, dtype=torch.int64))
            original = count(state.network, state.example)
            made[key] = Compressor(make_method(spec.entry, spec.settings), state, original, calibration, generator(1))
        return made[key]

    return compressor


def meter(made: Compressor, budget: Budget) -> Meter:
    return Meter(made.state.network, made.state.example, budget, CountedTable(None, 1))


@pytest.mark.parametrize("label", LABELS)
def test_bytes_are_met_as_stored_and_used_up(label: str, made_of: Callable[..., Compressor]) -> None:
    made, budget = made_of(label), Budget.read("bytes")
    whole = count_bytes(made.state.network).dense
    for keep in (0.7, 0.4):
        found = compress_within(made, keep, budget, meter(made, budget))
        size = count_bytes(found.network).sparse
        assert found.amounts["bytes"].measured == size <= found.amounts["bytes"].limit == pytest.approx(keep * whole)
        larger = compress_within(made, 1.25 * keep, budget, meter(made, budget))
        assert size < count_bytes(larger.network).sparse  # the limit decides, not the method's smallest network


def test_rounding_that_follows_is_paid_in_its_own_bytes(made_of: Callable[..., Compressor]) -> None:
    made, budget = made_of("Compose"), Budget.read("bytes")
    keep = 0.6 * count_bytes(made.compress(1.0).network).dense / count_bytes(made.state.network).dense
    amount = compress_within(made, keep, budget, meter(made, budget)).amounts["bytes"]
    assert 0.9 * amount.limit < amount.measured <= amount.limit


@pytest.mark.parametrize("label", ["SVD", "ALDS"])
@pytest.mark.parametrize("budget", [{"bytes": 0.3}, {"latency": 0.3}, {"bytes": 0.35, "latency": 0.3}], ids=str)
def test_schemes_after_others_of_fixed_size_pay_for_what_these_leave(
    label: str, budget: dict[str, float], made_of: Callable[..., Compressor], without_clock: None
) -> None:
    schemes = [{"name": "StructurePrune", "settings": {"density": 0.5}}, label]
    made = made_of("Compose", {"schemes": schemes})
    limited = Budget.read(budget)
    found = compress_within(made, 1.0, limited, meter(made, limited))
    for name, amount in found.amounts.items():
        assert amount.measured <= amount.limit, name
    assert max(amount.measured / amount.limit for amount in found.amounts.values()) > 0.7


@pytest.mark.parametrize("label", ["ALDS", "SVD", "PCA", "KLDS", "Mix"])
@pytest.mark.parametrize("shares", [{"bytes": 0.4, "latency": 0.75}, {"bytes": 0.95, "latency": 0.4}], ids=str)
def test_one_plan_holds_all_prices(
    label: str, shares: dict[str, float], made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made = made_of(label)
    own = meter(made, Budget.read(shares))
    limits = own.limits(1.0)
    plan = made.plan(1.0, "flops", _Search(made, limits, own).priced)
    found = own.predicted(build(made.state.network, plan))
    assert all(found[name] <= 1.05 * limits[name] for name in limits)  # a network takes longer than its layers


@pytest.mark.parametrize("label", SHAPING)
def test_several_limits_hold_and_one_of_them_decides(
    label: str, made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made = made_of(label)
    budget = Budget.read({"bytes": 0.6, "latency": 0.6, "memory": 0.95})
    own = meter(made, budget)
    found = compress_within(made, 1.0, budget, own)
    for name, amount in found.amounts.items():
        assert amount.measured <= amount.limit, name
    assert found.amounts["latency"].measured == pytest.approx(own.latency.measure(found.network))
    assert found.amounts["memory"].measured == peak_memory(bake_masks(found.network), made.state.example, 1)
    assert max(amount.measured / amount.limit for amount in found.amounts.values()) > 0.75


@pytest.mark.parametrize("label", SHAPING)
def test_a_wrong_prediction_of_latency_is_corrected(
    label: str, made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made, budget = made_of(label), Budget.read({"latency": 0.5})
    own = meter(made, budget)
    amount = compress_within(made, 1.0, budget, own).amounts["latency"]
    assert amount.measured <= amount.limit == pytest.approx(0.5 * own.latency.dense_ms)
    assert amount.predicted == pytest.approx(amount.measured, rel=0.05)


def test_what_fits_is_kept_when_a_later_measurement_is_far_off(
    made_of: Callable[..., Compressor], without_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, budget, factors = made_of("FT"), Budget.read({"latency": 0.5}), chain([0.6], repeat(100.0))
    monkeypatch.setattr(LatencyModel, "measure", lambda model, network: next(factors) * model.predict(network))
    amount = compress_within(made, 1.0, budget, meter(made, budget)).amounts["latency"]
    assert amount.measured <= amount.limit


@pytest.mark.parametrize("label", ["FT", "KLDS"])
def test_errors_that_differ_between_plans_do_not_leave_the_limit_unused(
    label: str, made_of: Callable[..., Compressor], without_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans above a size take a tenth longer than predicted, those below a tenth less."""
    made, budget, sizes = made_of(label), Budget.read({"latency": 0.5}), list[float]()

    def measure(model: LatencyModel, network: nn.Module) -> float:
        own = model.predict(network)
        sizes.append(own)
        return own * (1.1 if own > 0.99 * sizes[0] else 0.9)

    monkeypatch.setattr(LatencyModel, "measure", measure)
    amount = compress_within(made, 1.0, budget, meter(made, budget)).amounts["latency"]
    assert len(sizes) > 2
    assert 0.83 * amount.limit < amount.measured <= amount.limit  # 0.9 of 1 / 1.1 without halving


def test_absolute_limits_are_those_of_the_network(made_of: Callable[..., Compressor]) -> None:
    made, budget = made_of("FT"), Budget.read({"bytes": "2 kB", "flops": 0.7})
    found = compress_within(made, 1.0, budget, meter(made, budget))
    assert found.amounts["bytes"].limit == 2000
    assert found.amounts["flops"].limit == pytest.approx(0.7 * made.original.flops)
    assert count_bytes(found.network).sparse <= 2000


def test_masked_weights_lower_neither_latency_nor_memory(
    made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made = made_of("WT")
    for quantity in ("latency", "memory"):
        budget = Budget.read({quantity: 0.9, "bytes": 0.9})
        with pytest.raises(InfeasibleBudget, match="Masked weights take the same time and memory"):
            compress_within(made, 1.0, budget, meter(made, budget))


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("WT", {}),
        ("FT", {}),
        ("SVD", {}),
        ("Quantize", {"dtype": "int8"}),
        ("Mix", {**SETTINGS["Mix"]}),
        ("Mix", {**SETTINGS["Mix"], "families": ["masked", "bits"]}),
        ("Mix", {**SETTINGS["Mix"], "families": ["bits"]}),
        ("Compose", {"schemes": ["WT", {"name": "Quantize", "settings": {"dtype": "int8"}}]}),
        ("Compose", {"schemes": ["SVD", {"name": "Quantize", "settings": {"dtype": "int8"}}]}),
    ],
    ids=str,
)  # fmt: skip
def test_methods_lower_all_quantities_but_those_that_they_say_they_never_lower(
    label: str, settings: dict[str, object], made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made, never = made_of(label, settings), configure(label, settings).never_lowers
    for name in UNITS:
        limited = Budget.read({name: 0.95})
        if name in never:
            with pytest.raises(InfeasibleBudget):
                compress_within(made, 1.0, limited, meter(made, limited))
        else:
            amount = compress_within(made, 1.0, limited, meter(made, limited)).amounts[name]
            assert amount.measured <= amount.limit


@pytest.mark.parametrize("budget", [{"memory": 0.9}, {"memory": 0.9, "bytes": 0.1}], ids=str)
def test_memory_is_met_where_some_plans_only_mask(budget: dict[str, float], made_of: Callable[..., Compressor]) -> None:
    made, limited = made_of("Mix"), Budget.read(budget)
    for amount in compress_within(made, 1.0, limited, meter(made, limited)).amounts.values():
        assert amount.measured <= amount.limit


def test_the_nearest_is_named_where_nothing_fits(made_of: Callable[..., Compressor], without_clock: None) -> None:
    for label, given in (("FT", {"bytes": "10 B"}), ("SVD", {"latency": "1 us"})):
        budget = Budget.read(given)
        with pytest.raises(InfeasibleBudget, match=r"smallest network of this method has [0-9.]+ (kB|ms)"):
            compress_within(made_of(label), 1.0, budget, meter(made_of(label), budget))


@pytest.mark.parametrize("label", ["FT", "SVD", "ALDS"])
def test_infeasible_latencies_are_told_in_the_limit_that_was_asked_for(
    label: str, made_of: Callable[..., Compressor], without_clock: None
) -> None:
    made, budget = made_of(label), Budget.read({"latency": 0.001})
    own = meter(made, budget)
    own.correction = SLOWER
    with pytest.raises(InfeasibleBudget) as caught:
        compress_within(made, 1.0, budget, own)
    assert caught.value.quantity == "latency"
    assert caught.value.limit == pytest.approx(1e3 * own.latency.dense_ms, abs=1)
    assert caught.value.original == pytest.approx(1e6 * own.latency.dense_ms, abs=1)
    assert caught.value.limit < caught.value.smallest < caught.value.original


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_a_limit_that_the_sum_of_layers_holds_alone_is_met_at_lower_prices(
    share: float, made_of: Callable[..., Compressor], without_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = LatencyModel.predict

    def slower(model: LatencyModel, network: nn.Module, layout: Layout | None = None) -> float:
        """With 5 % more for every pair of factors, which no price tells."""
        pairs = sum(hasattr(module, "encoder") for module in network.modules())
        return (1 + 0.05 * pairs) * predict(model, network, layout)

    monkeypatch.setattr(LatencyModel, "predict", slower)
    made, budget = made_of("Mix"), Budget.read({"latency": share})
    amount = compress_within(made, 1.0, budget, meter(made, budget)).amounts["latency"]
    assert 0.9 * amount.limit < amount.measured <= amount.limit


@pytest.mark.parametrize("label", ["KLDS", "Mix", "ALDS", "Compose"])
def test_the_layout_with_the_smaller_loss_wins_over_that_with_more_parameters(
    label: str, made_of: Callable[..., Compressor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, budget = made_of(label), Budget.read("bytes")
    plans = [made.plan(keep) for keep in (0.4, 0.7)]
    assert plans[0].loss > plans[1].loss > 0
    tall, good = (replace(plan, parameters=number) for plan, number in zip(plans, (900, 300), strict=True))
    found: dict[Layout, Plan] = {"contiguous": tall, "channels_last": good}
    monkeypatch.setattr(_Search, "_layouts", list(found))
    monkeypatch.setattr(_Search, "_in_layout", lambda search, layout: (found[layout], {}))
    own = meter(made, budget)
    assert _Search(made, own.limits(0.7), own).largest()[0] is good
