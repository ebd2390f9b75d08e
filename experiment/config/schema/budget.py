"""The block `experiments.budget`: the quantities that are limited, and by which share or amount."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from experiment.config.schema.training import CONFLICT, Block, Conflict, Number, Whole, refuse
from experiment.errors import ConfigError, described
from experiment.registry import suggestion

Quantity = Literal["parameters", "flops", "bytes", "latency", "memory"]
_COUNTED = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_STORED = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS: dict[Quantity, dict[str, float]] = {  # in elements, multiply-adds, bytes, milliseconds
    "parameters": _COUNTED,
    "flops": _COUNTED,
    "bytes": _STORED,
    "latency": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": _STORED,
}
MOST_SAMPLES = 65_536  # in one forward pass
EXPECTED = "must be a quantity, a list of quantities, or a mapping from quantities to shares and amounts"
_AMOUNT = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*")


@dataclass(frozen=True)
class Limit:
    """A limit on one quantity: a share of the uncompressed network's, or an amount in the unit of `UNITS`."""

    quantity: Quantity
    value: float = 1.0
    absolute: bool = False


def _told(fault: ErrorDetails) -> str:
    place, known = ".".join(("budget", *(str(key) or "''" for key in fault["loc"][:1]))), (*UNITS, "batch")
    if fault["type"] == CONFLICT:
        return f"{place}: {fault['ctx']['text']}"
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][0])
        return f"{place}: unknown quantity. Known: {', '.join(known)}.{suggestion(key, known)}"
    whole = f"a whole number, 1 to {MOST_SAMPLES}"
    expected = whole if place == "budget.batch" else "a share in (0, 1], or an amount"
    return f"{place}: must be {expected}. Got {fault['input']!r}."


def _limit(quantity: Quantity, value: object) -> Limit:
    """Read a limit.

    Raises: ValueError: it is neither a share nor an amount with a unit of the quantity.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return Limit(quantity, float(value))
    units = UNITS[quantity]
    found = _AMOUNT.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0 or found[2] not in units or isinstance(value, bool):
        example = {"latency": "12 ms", "parameters": "270 k", "flops": "40 M"}.get(quantity, "400 kB")
        names = ", ".join(unit for unit in units if unit)
        raise ValueError(f"must be a share in (0, 1], or an amount with its unit ({names}), as '{example}'.")
    return Limit(quantity, number * units[found[2]], absolute=True)


Amount = Annotated[Number | str | None, Field(description="A share in (0, 1], or an amount with its unit.")]


class Budget(Block):
    """What limits the size of a compressed network. All given limits hold.

    The name of a quantity, or a list of names, is the short form: the keep ratio is then the share of each. With shares
    or amounts, a keep ratio multiplies them, and `spacing` may be left out.
    """

    parameters: Amount = None
    """Parameters that are not masked. A share of the uncompressed network's, or an amount: 0.1, 270 k."""
    flops: Amount = None
    """Multiply-adds of one sample without masked weights: 0.5, 40 M."""
    bytes: Amount = None
    """Bytes of the parameters as they are stored, with the indices of masked tensors: 0.1, 400 kB."""
    latency: Amount = None
    """Time of a forward pass on this device, measured: 0.5, 12 ms."""
    memory: Amount = None
    """Peak bytes of a forward pass, parameters included: 0.5, 20 MB."""
    batch: Annotated[Whole, Field(ge=1, le=MOST_SAMPLES)] = 1
    """Samples per forward pass, for latency and memory."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str):
            return {value: 1.0}
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return dict.fromkeys(value, 1.0)
        if not isinstance(value, Mapping | Budget):
            refuse(value, [((), f"{EXPECTED}. Got {described(value)}.")])
        return value

    @model_validator(mode="after")
    def _some_limit(self) -> Budget:
        values = {name: getattr(self, name) for name in UNITS}
        found: list[Conflict] = []
        for name, value in values.items():
            try:
                _limit(name, 1.0 if value is None else value)
            except ValueError as error:
                found.append(((name,), f"{error} Got {value!r}."))
        if all(value is None for value in values.values()):
            found.append(((), f"must name a quantity: {', '.join(UNITS)}."))
        if self.batch != 1 and self.latency is None and self.memory is None:
            found.append((("batch",), "has no effect without latency or memory. Remove it."))
        refuse(values, found)
        return self

    @staticmethod
    def read(value: object) -> Budget:
        """A budget in any of its forms, given in Python.

        Raises: ConfigError: it is none.
        """
        if isinstance(value, Budget):
            return value
        try:
            return Budget.model_validate(list(value) if isinstance(value, tuple) else value)
        except ValidationError as error:
            raise ConfigError(list(dict.fromkeys(map(_told, error.errors())))) from None

    @property
    def limits(self) -> tuple[Limit, ...]:
        """One for every limited quantity."""
        return tuple(_limit(name, value) for name in UNITS if (value := getattr(self, name)) is not None)

    @property
    def counted(self) -> Literal["parameters", "flops"] | None:
        """The only limited quantity, if keep ratios are shares of it and it is counted from the plan alone."""
        if self.limits == (Limit("parameters"),):
            return "parameters"
        return "flops" if self.limits == (Limit("flops"),) else None

    @property
    def complete(self) -> bool:
        """Whether the block says how large networks may be, without keep ratios."""
        return any(limit.absolute or limit.value < 1 for limit in self.limits)

    def key(self) -> object:
        """The part of a cell's key."""
        return self.counted or self.model_dump(mode="json", exclude_defaults=True)

    def __str__(self) -> str:
        def words(limit: Limit) -> str:
            given = getattr(self, limit.quantity)
            return (
                f"{limit.quantity} {given}"
                if limit.absolute
                else (limit.quantity if limit.value == 1 else f"{100 * limit.value:g} % of the {limit.quantity}")
            )

        batch = (
            f" at batch size {self.batch}" if {"latency", "memory"} & {limit.quantity for limit in self.limits} else ""
        )
        return ", ".join(map(words, self.limits)) + batch
