"""Budgets in any quantities: the largest network of a method within all limits, measured on the network itself.

A method plans under a limit on parameters or FLOPs; those that choose among options of layers also take prices. All
other limits are met by a search over that one, on networks that are built and counted but not filled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from experiment.config.schema.budget import Budget as BudgetBlock
from experiment.errors import InfeasibleBudget
from experiment.layers.build import build
from experiment.layers.plan import Plan, State
from experiment.measure import Count, count_bytes
from experiment.measure.latency import Layout
from experiment.measure.storage import form_bytes, shape_bytes
from experiment.methods.base import Amount, Compressed, Compressor, Priced, Quantity, keep_ratio
from experiment.methods.meter import Meter
from experiment.progress import working

SMALLEST, STEP = 2e-3, 0.7  # the search tries 1, STEP, STEP^2, ... of the parameters or FLOPs, down to SMALLEST
FINE = 1.005  # the ratio of two shares at which it ends
FAR_BELOW = 0.5  # of what is allowed; smaller networks are reported
TIGHTER, MARGIN, FULL = 6, 0.99, 0.98  # plans whose layers are allowed less than the network; what counts as used up
TRIES = 6  # networks that are built and measured for one limit on latency
SHAPED = ("latency", "memory")  # quantities that depend on the shapes of layers alone
CLOSE = 0.95  # of the limit on latency: closer than this, no further network is tried
Found = tuple[Plan, dict[str, float]]  # with its predicted values


def compress_within(compressor: Compressor, keep: float, budget: BudgetBlock, meter: Meter | None) -> Compressed:
    """The best network of a method within all limits of a budget, times a keep ratio.

    Args:
        meter: of the original network; needed for any quantity beside parameters or FLOPs alone.
    Raises: InfeasibleBudget: the method finds no network within the limits. CompressionError.
    """
    if budget.counted is not None or meter is None:
        assert budget.counted is not None
        return compressor.compress(keep, budget.counted)
    limits = meter.limits(keep_ratio(keep))
    rest, best, nearest = compressor.out_of_reach, None, dict[str, float]()
    too_low, enough = 0.0, math.inf  # corrections whose plan is too slow, and fast enough
    for _ in range(TRIES):
        with working("choosing what to keep"):
            try:
                plan, predicted = _Search(compressor, limits, meter).largest()
            except InfeasibleBudget:
                if best is None:
                    raise
                break  # a correction too far
        made = compressor.made(plan, rest)
        measured, used = dict(predicted), meter.correction
        if "latency" in limits:
            measured["latency"] = meter.latency.measure(made.network)
            meter.correction *= measured["latency"] / predicted["latency"]
        amounts = {name: Amount(limit, predicted[name], measured[name]) for name, limit in limits.items()}
        found = replace(made, amounts=amounts)
        fits = all(amount.measured <= amount.limit for amount in amounts.values())
        nearest = min(nearest or measured, measured, key=lambda values: _worst(values, limits))
        if fits and (best is None or _rank(plan) < _rank(best.plan)):
            best = found
        if "latency" not in limits or (fits and measured["latency"] >= CLOSE * limits["latency"]):
            break
        if fits and predicted["latency"] <= measured["latency"] / CLOSE:
            break  # nothing larger is predicted to fit
        too_low, enough = (too_low, min(enough, used)) if fits else (max(too_low, used), enough)
        if not too_low < meter.correction < enough:  # the error differs between plans
            if enough <= FINE * too_low:
                break
            meter.correction = math.sqrt(too_low * enough) if enough < math.inf else FINE * too_low
    if best is None:
        raise _infeasible(limits, nearest, meter, compressor)
    return best


def _rank(plan: Plan) -> tuple[float, int]:
    """Plans of one method that hold the same limits, the best first: by what it minimises, then by size."""
    return plan.loss, -(plan.parameters or 0)


def _worst(values: Mapping[str, float], limits: Mapping[str, float]) -> tuple[float, float]:
    """The largest share of a limit that is used, and the sum of all."""
    shares = [values[name] / limit for name, limit in limits.items()]
    return round(max(shares), 6), sum(shares)  # rounded: what masks do not change stays the same


class _Search:
    """Finds the plan of a method's largest network that is predicted to hold the limits.

    Attributes:
        least, last: values of the network that comes closest to the limits, and of the last one.
        floor: the smallest share of the parameters or FLOPs that the method has.
        priced: the limits on what layers cost, in a layout in which these can be met.
        masked, reshaped: no plan so far changes the shape of a layer; the last one does.
        shapes: plans keep a share of the bytes in memory, too, since the method masks weights instead.
    """

    def __init__(self, compressor: Compressor, limits: Mapping[str, float], meter: Meter) -> None:
        self.compressor, self.limits, self.meter = compressor, limits, meter
        self.proxy: Quantity = "flops" if {"flops", "latency", "memory"} & limits.keys() else "parameters"
        self._stored, self._shaped = _once(_stored), _once(_in_memory)
        self._taken = {layout: _once(partial(self._nanoseconds, layout)) for layout in self._layouts}
        self.priced = self._prices(self._layouts[0])
        self.least, self.last = dict[str, float](), dict[str, float]()
        self.floor, self.masked, self.reshaped, self.shapes = SMALLEST, True, False, False

    def largest(self) -> Found:
        """The plan with its predicted values.

        Raises: InfeasibleBudget: there is none.
        """
        found, share, larger = self._under_prices(), 1.0, 1.0
        if found is None and self._fixed():
            raise self._infeasible()
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
        self.reshaped = bool(plan.factors or plan.kept or plan.skipped or plan.branches)
        self.masked = self.masked and not self.reshaped
        self.last = self.meter.predicted(build(self.compressor.state.network, plan))
        self.shapes |= bool(plan.masks) and self.last.get("memory", 0) > self.limits.get("memory", math.inf)
        self.least = min(self.least or self.last, self.last, key=lambda own: _worst(own, self.limits))
        return (plan, self.last) if all(self.last[name] <= limit for name, limit in self.limits.items()) else None

    @property
    def _layouts(self) -> list[Layout]:
        return self.meter.latency.layouts if "latency" in self.limits else ["contiguous"]

    def _under_prices(self) -> Found | None:
        """The best plan whose layers hold the limits, in the better of the memory layouts."""
        found, errors = list[Found](), list[InfeasibleBudget]()
        for layout in self._layouts:
            try:
                best = self._in_layout(layout)
            except InfeasibleBudget as error:
                errors.append(error)
                continue
            self.priced = self._prices(layout)
            found += [best] if best else []
        if len(errors) == len(self._layouts):
            raise min(errors, key=lambda error: error.smallest)
        return min(found, key=lambda found: _rank(found[0]), default=None)

    def _in_layout(self, layout: Layout) -> Found | None:
        """The plan whose layers take just so much less than the limit that the network holds it: layers are not all."""
        limit, best, tight, low, high = self.limits.get("latency", math.inf), None, 1.0, 0.0, 1.0
        for _ in range(TIGHTER):
            try:
                found = self.attempt(1.0, self._prices(layout, tight))
            except InfeasibleBudget:  # too tight
                if tight == 1:
                    raise
                break
            taken = self.last.get("latency", 0)
            if found:
                best, low = found, tight
            if (found and (tight == 1 or taken >= FULL * limit)) or (not found and taken <= limit) or not self.reshaped:
                break  # used up; other limits do not hold; the method takes no prices
            high = high if found else tight
            tight = (low + high) / 2 if low else tight * MARGIN * limit / taken
        return best

    def _prices(self, layout: Layout, tight: float = 1.0) -> tuple[Priced, ...]:
        """The limits on bytes and latency as those on the sum of what layers cost, latency in nanoseconds.

        Args:
            layout: in which layers take their time.
            tight: the share of the latency that is allowed.
        """
        found = []
        if "bytes" in self.limits:
            found.append(Priced("bytes", form_bytes, self._stored, math.floor(self.limits["bytes"]), by_weight=True))
        if "latency" in self.limits:
            limit, price = _ns(tight * self.limits["latency"] / self.meter.correction), self.meter.latency.price
            found.append(Priced("latency", partial(price, layout=layout), self._taken[layout], limit))
        return tuple(found)

    def _share_of_shapes(self, share: float) -> Priced:
        return Priced(
            "weights in memory", shape_bytes, self._shaped, math.floor(share * self._shaped(self.compressor.state))
        )

    def _nanoseconds(self, layout: Layout, state: State) -> int:
        """The predicted latency of a state."""
        return _ns(self.meter.latency.predict(build(state.network, _support(state)), layout))

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
