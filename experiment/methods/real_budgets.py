"""Budgets in any quantities: the largest network of a method within all limits, measured on the network itself.

A method plans under a limit on parameters or FLOPs; those that choose among options of layers also take prices. All
other limits are met by a search over that one, on networks that are built and counted but not filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from experiment.config.schema.budget import Budget as BudgetBlock
from experiment.errors import InfeasibleBudget
from experiment.layers.build import build
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count_bytes
from experiment.measure.storage import form_bytes, shape_bytes
from experiment.methods.base import Amount, Compressed, Compressor, Priced, Quantity, keep_ratio
from experiment.methods.meter import Meter
from experiment.progress import working

SMALLEST, STEP = 2e-3, 0.7  # the search tries 1, STEP, STEP^2, ... of the parameters or FLOPs, down to SMALLEST
FINE = 1.005  # the ratio of two shares at which it ends
FAR_BELOW = 0.5  # of what is allowed; smaller networks are reported
TIGHTER, MARGIN = 6, 0.99  # plans under a lower and lower price, before smaller networks are looked for
TRIES = 5  # networks that are built and measured for one limit on latency
SHAPED = ("latency", "memory")  # quantities that depend on the shapes of layers alone
CLOSE = 0.95  # of the limit on latency: closer than this, no further network is tried
Found = tuple[Plan, dict[str, float]]  # with its predicted values


def compress_within(compressor: Compressor, keep: float, budget: BudgetBlock, meter: Meter | None) -> Compressed:
    """The largest network of a method within all limits of a budget, times a keep ratio.

    Args:
        meter: of the original network; needed for any quantity beside parameters or FLOPs alone.
    Raises: InfeasibleBudget: the method finds no network within the limits. CompressionError.
    """
    if budget.counted is not None or meter is None:
        assert budget.counted is not None
        return compressor.compress(keep, budget.counted)
    limits = meter.limits(keep_ratio(keep))
    rest, best, nearest = compressor.out_of_reach, None, dict[str, float]()
    for _ in range(TRIES):
        with working("choosing what to keep"):
            try:
                plan, predicted = _Search(compressor, limits, meter).largest()
            except InfeasibleBudget:
                if best is None:
                    raise
                break  # a correction too far
        made = compressor.made(plan, rest)
        measured = dict(predicted)
        if "latency" in limits:
            measured["latency"] = meter.latency.measure(made.network)
            meter.correction *= measured["latency"] / predicted["latency"]
        amounts = {name: Amount(limit, predicted[name], measured[name]) for name, limit in limits.items()}
        found = replace(made, amounts=amounts)
        fits = all(amount.measured <= amount.limit for amount in amounts.values())
        nearest = min(nearest or measured, measured, key=lambda values: _worst(values, limits))
        if fits and (best is None or found.count.parameters > best.count.parameters):
            best = found
        if "latency" not in limits or (fits and measured["latency"] >= CLOSE * limits["latency"]):
            break
        if fits and predicted["latency"] <= measured["latency"] / CLOSE:
            break  # nothing larger is predicted to fit
    if best is None:
        raise _infeasible(limits, nearest, meter, compressor)
    return best


def _worst(values: Mapping[str, float], limits: Mapping[str, float]) -> tuple[float, float]:
    """The largest share of a limit that is used, and the sum of all."""
    shares = [values[name] / limit for name, limit in limits.items()]
    return round(max(shares), 6), sum(shares)  # rounded: what masks do not change stays the same


class _Search:
    """Finds the plan of a method's largest network that is predicted to hold the limits.

    Attributes:
        least, last: values of the network that comes closest to the limits, and of the last one.
        floor: the smallest share of the parameters or FLOPs that the method has.
        masked: no plan so far changes the shape of a layer.
        shapes: plans keep a share of the bytes in memory, too, since the method masks weights instead.
    """

    def __init__(self, compressor: Compressor, limits: Mapping[str, float], meter: Meter) -> None:
        self.compressor, self.limits, self.meter = compressor, limits, meter
        self.proxy: Quantity = "flops" if {"flops", "latency", "memory"} & limits.keys() else "parameters"
        self._stored, self._taken, self._shaped = _once(_stored), _once(self._nanoseconds), _once(_in_memory)
        self.priced = self._prices()
        self.least, self.last = dict[str, float](), dict[str, float]()
        self.floor, self.masked, self.shapes = SMALLEST, True, False

    def largest(self) -> Found:
        """The plan with its predicted values.

        Raises: InfeasibleBudget: there is none.
        """
        found, share, larger = self.attempt(1.0, self.priced), 1.0, 1.0
        if found is None and self._fixed():
            raise self._infeasible()
        found = found or self._under_lower_prices()
        while found is None:
            if share == self.floor or self.floor >= 1:
                raise self._infeasible(masked=self.masked and self._only_shapes_matter())
            larger = share if share > self.floor else larger
            share = max(share * STEP, self.floor)
            found = self.attempt(share, self.priced)
        while larger > FINE * share:
            middle = math.sqrt(share * larger)
            better = self.attempt(middle, self.priced)
            share, larger, found = (share, middle, found) if better is None else (middle, larger, better)
        return found

    def attempt(self, share: float, priced: tuple[Priced, ...]) -> Found | None:
        """The plan for a share of the parameters or FLOPs, if it holds the limits."""
        try:
            shaped = (self._share_of_shapes(share),) if self.shapes else ()
            plan = self.compressor.plan(share, self.proxy, (*priced, *shaped))
        except InfeasibleBudget as error:
            if error.quantity in self.limits and error.quantity != self.proxy:  # a price: no smaller share can help
                raise self._too_expensive(error) from error
            self.floor = max(self.floor, error.smallest / error.original)
            return None
        self.masked = self.masked and not (plan.factors or plan.kept or plan.skipped or plan.branches)
        self.last = self.meter.predicted(build(self.compressor.state.network, plan))
        self.shapes |= bool(plan.masks) and self.last.get("memory", 0) > self.limits.get("memory", math.inf)
        self.least = min(self.least or self.last, self.last, key=lambda own: _worst(own, self.limits))
        return (plan, self.last) if all(self.last[name] <= limit for name, limit in self.limits.items()) else None

    def _under_lower_prices(self) -> Found | None:
        """The plan whose layers take so much less than the limit that the network holds it: layers are not all."""
        tight, found, limit = 1.0, None, self.limits.get("latency", math.inf)
        for _ in range(TIGHTER):
            if found or self.last.get("latency", 0) <= limit:
                break
            tight *= MARGIN * limit / self.last["latency"]
            try:
                found = self.attempt(1.0, self._prices(tight))
            except InfeasibleBudget:  # too tight
                break
        return found

    def _prices(self, tight: float = 1.0) -> tuple[Priced, ...]:
        """The limits on bytes and latency as those on the sum of what layers cost, latency in nanoseconds.

        Args:
            tight: the share of the latency that is allowed.
        """
        found = []
        if "bytes" in self.limits:
            found.append(Priced("bytes", form_bytes, self._stored, math.floor(self.limits["bytes"]), by_weight=True))
        if "latency" in self.limits:
            limit = _ns(tight * self.limits["latency"] / self.meter.correction)
            found.append(Priced("latency", self.meter.latency.price, self._taken, limit))
        return tuple(found)

    def _share_of_shapes(self, share: float) -> Priced:
        return Priced(
            "weights in memory", shape_bytes, self._shaped, math.floor(share * self._shaped(self.compressor.state))
        )

    def _nanoseconds(self, state: State) -> int:
        """The predicted latency of a state."""
        return _ns(self.meter.latency.predict(build(state.network, _support(state))))

    def _fixed(self) -> bool:
        """Whether the method's settings fix the size of its networks."""
        try:
            whole, smallest = (self.compressor.plan(share, self.proxy, self.priced) for share in (1.0, SMALLEST))
        except InfeasibleBudget:
            return False
        return whole.parameters == smallest.parameters

    def _only_shapes_matter(self) -> bool:
        """Whether the limits that depend on more than the shapes of layers are met; masks do not change the others."""
        counted = [name for name in self.limits if name not in SHAPED]
        return all(self.least.get(name, 0) <= self.limits[name] for name in counted)

    def _too_expensive(self, error: InfeasibleBudget) -> InfeasibleBudget:
        """The error of a method in the user's milliseconds."""
        if error.quantity != "latency":
            return error
        smallest = math.ceil(error.smallest * self.meter.correction)
        limit, original = _ns(self.limits["latency"]), _ns(self.meter.original["latency"])
        found = InfeasibleBudget(limit=limit, smallest=smallest, original=original, quantity="latency")
        return found.because(error.reason)

    def _infeasible(self, *, masked: bool = False) -> InfeasibleBudget:
        return _infeasible(self.limits, self.least, self.meter, self.compressor, masked=masked)


def _once(value: Callable[[State], int]) -> Callable[[State], int]:
    """The same function, which computes the value of a state once."""
    seen = dict[int, tuple[State, int]]()

    def kept(state: State) -> int:
        if id(state) not in seen:
            seen[id(state)] = state, value(state)
        return seen[id(state)][1]

    return kept


def _support(state: State) -> Plan:
    """The plan of what a state has left."""
    return Plan(kept=state.kept, skipped=state.skipped, branches=state.branches)


def _stored(state: State) -> int:
    """Bytes of a state."""
    return count_bytes(build(state.network, replace(_support(state), masks=state.masks))).sparse


def _in_memory(state: State) -> int:
    """Bytes of a state's weights in memory."""
    return count_bytes(build(state.network, _support(state))).dense


def _ns(milliseconds: float) -> int:
    return round(1e6 * milliseconds)


def shortfall(keep: float, compressed: Compressed, original: Count, budget: BudgetBlock) -> str | None:
    """A warning if a network has less than half of every limit, else None."""
    if budget.counted is not None:
        reached = getattr(compressed.count, budget.counted) / getattr(original, budget.counted)
        what, asked = f"{reached:.2%} of the {budget.counted} are left", f"{keep:.2%} were requested"
    else:
        reached = keep * max(amount.measured / amount.limit for amount in compressed.amounts.values())
        what, asked = f"no limit is used by more than {reached / keep:.2%}", "100% are allowed"
    if reached >= FAR_BELOW * keep:
        return None
    return f"{what}, but {asked}: the next larger network of this method exceeds the budget"


def _infeasible(
    limits: Mapping[str, float],
    nearest: Mapping[str, float],
    meter: Meter,
    compressor: Compressor,
    *,
    masked: bool = False,
) -> InfeasibleBudget:
    over = max(limits, key=lambda name: nearest.get(name, meter.original[name]) / limits[name])
    unit = 1e6 if over == "latency" else 1.0
    error = InfeasibleBudget(
        limit=int(limits[over] * unit), smallest=math.ceil(nearest.get(over, meter.original[over]) * unit),
        original=int(meter.original[over] * unit), quantity=over,
    )  # fmt: skip
    text = compressor.out_of_reach.text()
    return error.because(f"Masked weights take the same time and memory as others. {text}".strip() if masked else text)
