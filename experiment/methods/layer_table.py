"""The effect of a method on every layer, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from experiment.layers.plan import Detail
from experiment.layers.unreachable import Unreached
from experiment.measure import Count
from experiment.methods.base import Compressed

UNREACHABLE = "unreachable"  # the kind of modules that the method cannot compress


def layer_rows(original: Count, compressed: Compressed) -> list[dict[str, Detail]]:
    """One row per layer of the original network, in its order, with the same keys in every row.

    A decomposed layer counts with its factors, a removed layer with zeros. Modules that the method cannot compress are
    of kind `unreachable`. If the network also multiplies outside its layers (attention products, recurrent layers), a
    row `(other)` has these multiply-adds, and all parameters that are in no other row.
    """
    details = compressed.plan.details
    extra = list(dict.fromkeys(key for detail in details.values() for key in detail))
    rows: list[dict[str, Detail]] = []
    row: dict[str, Detail]
    for name, before in original.layers.items():
        prefix = f"{name}." if name else ""
        now = [c for n, c in compressed.count.layers.items() if n == name or n.startswith(prefix)]
        row = {
            "layer": name,
            "kind": before.kind,
            "parameters_before": before.parameters,
            "parameters": sum(c.parameters for c in now),
            "flops_before": before.flops,
            "flops": sum(c.flops for c in now),
        }
        rows.append(row | {key: details.get(name, {}).get(key) for key in extra})
    modules = compressed.out_of_reach.modules
    elsewhere = sum(m.parameters for m in modules if m.name not in original.layers)
    if original.other_flops:
        row = {
            "layer": "(other)",
            "kind": "other",
            "parameters_before": _outside(original) - elsewhere,
            "parameters": _outside(compressed.count) - elsewhere,
            "flops_before": original.other_flops,
            "flops": compressed.count.other_flops,
        }
        rows.append(row | dict.fromkeys(extra))
    return _with_unreachable(rows, modules, extra)


def _with_unreachable(
    rows: list[dict[str, Detail]], modules: Sequence[Unreached], extra: Sequence[str]
) -> list[dict[str, Detail]]:
    """The rows with unreachable layers marked, and further rows for unreachable modules that are not layers."""
    names, there = {module.name for module in modules}, {row["layer"] for row in rows}
    marked = [row | {"kind": UNREACHABLE} if row["layer"] in names else row for row in rows]
    others: list[dict[str, Detail]] = [
        {"layer": m.name, "kind": UNREACHABLE, "parameters_before": m.parameters, "parameters": m.parameters,
         "flops_before": 0, "flops": 0}
        for m in modules
        if m.name not in there
    ]  # fmt: skip
    return marked + [other | dict.fromkeys(extra) for other in others]


def _outside(counted: Count) -> int:
    return counted.parameters - sum(layer.parameters for layer in counted.layers.values())
