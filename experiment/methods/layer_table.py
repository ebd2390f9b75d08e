"""The effect of a method on every layer, as rows of a table."""

from collections.abc import Sequence

from experiment.layers.plan import Detail
from experiment.layers.read_parameters import shown
from experiment.layers.unreachable import Unreached
from experiment.measure import Count
from experiment.methods.base import Compressed

UNREACHABLE = "unreachable"  # the kind of modules that the method cannot compress


def layer_rows(original: Count, compressed: Compressed) -> list[dict[str, Detail]]:
    """One row per layer of the original network, in its order, with the same keys in every row.

    A decomposed layer counts with its factors, a removed layer with zeros. Matrices outside layers that the method
    compresses (embeddings, recurrent weights, raw parameters) follow, of kind `parameter`, and modules that it cannot
    compress, of kind `unreachable`. If the network also multiplies outside all these, such as in attention, a row
    `(other)` has these multiply-adds, and all parameters that are in no other row.
    """
    details, counted = compressed.plan.details, compressed.count
    extra = list(dict.fromkeys(key for detail in details.values() for key in detail))
    rows: list[dict[str, Detail]] = []
    for name, before in original.layers.items():
        prefix = f"{name}." if name else ""
        now = [c for n, c in counted.layers.items() if n == name or n.startswith(prefix)]
        sizes = (before.parameters, sum(c.parameters for c in now), before.flops, sum(c.flops for c in now))
        rows.append(_row(name, before.kind, *sizes) | {key: details.get(name, {}).get(key) for key in extra})
    matrices = [name for name in original.others if shown(name) in details]
    for name in matrices:
        sizes = (original.others[name], counted.others.get(name, 0), original.read[name], counted.read.get(name, 0))
        rows.append(_row(shown(name), "parameter", *sizes) | {key: details[shown(name)].get(key) for key in extra})
    modules = compressed.out_of_reach.modules
    flops_before, flops = (c.other_flops - sum(c.read.get(name, 0) for name in matrices) for c in (original, counted))
    if flops_before:
        told = sum(m.parameters for m in modules if m.name not in original.layers)
        left = [_outside(c) - told - sum(c.others.get(name, 0) for name in matrices) for c in (original, counted)]
        rows.append(_row("(other)", "other", *left, flops_before, flops) | dict.fromkeys(extra))
    return _with_unreachable(rows, modules, extra)


def _row(layer: str, kind: str, *sizes: int) -> dict[str, Detail]:
    keys = ("parameters_before", "parameters", "flops_before", "flops")
    return {"layer": layer, "kind": kind, **dict(zip(keys, sizes, strict=True))}


def _with_unreachable(
    rows: list[dict[str, Detail]], modules: Sequence[Unreached], extra: Sequence[str]
) -> list[dict[str, Detail]]:
    """The rows with unreachable layers marked, and further rows for unreachable modules that are not layers."""
    names, there = {module.name for module in modules}, {row["layer"] for row in rows}
    marked = [row | {"kind": UNREACHABLE} if row["layer"] in names else row for row in rows]
    others = [_row(m.name, UNREACHABLE, m.parameters, m.parameters, 0, 0) for m in modules if m.name not in there]
    return marked + [other | dict.fromkeys(extra) for other in others]


def _outside(counted: Count) -> int:
    return counted.parameters - sum(layer.parameters for layer in counted.layers.values())
