"""What a method did to every layer, as rows of a table."""

from __future__ import annotations

from experiment.layers.plan import Detail
from experiment.measure import Count
from experiment.methods.base import Compressed


def layer_rows(original: Count, compressed: Compressed) -> list[dict[str, Detail]]:
    """One row a layer of the original network, in its order, with the same keys in every row.

    A decomposed layer counts with its factors, a layer that is gone with zeros. Where the network multiplies outside
    its layers too (attention's products, recurrent layers), a last row `(other)` has that, and all parameters that are
    in no layer.
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
    if original.other_flops:
        row = {
            "layer": "(other)",
            "kind": "other",
            "parameters_before": _outside(original),
            "parameters": _outside(compressed.count),
            "flops_before": original.other_flops,
            "flops": compressed.count.other_flops,
        }
        rows.append(row | dict.fromkeys(extra))
    return rows


def _outside(counted: Count) -> int:
    return counted.parameters - sum(layer.parameters for layer in counted.layers.values())
