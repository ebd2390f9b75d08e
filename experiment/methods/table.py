"""What a method did to every layer, as rows of a table."""

from __future__ import annotations

from experiment.layers.plan import Detail
from experiment.measure import Count
from experiment.methods.base import Compressed


def layer_rows(original: Count, compressed: Compressed) -> list[dict[str, Detail]]:
    """One row a layer of the original network, in its order, with the same keys in every row.

    A decomposed layer counts with its factors, a layer that is gone with zeros.
    """
    details = compressed.plan.details
    extra = list(dict.fromkeys(key for detail in details.values() for key in detail))
    rows: list[dict[str, Detail]] = []
    for name, before in original.layers.items():
        now = [c for n, c in compressed.count.layers.items() if n == name or n.startswith(f"{name}.")]
        row: dict[str, Detail] = {
            "layer": name,
            "kind": before.kind,
            "parameters_before": before.parameters,
            "parameters": sum(c.parameters for c in now),
            "flops_before": before.flops,
            "flops": sum(c.flops for c in now),
        }
        rows.append(row | {key: details.get(name, {}).get(key) for key in extra})
    return rows
