"""What was allowed of every limited quantity, what the plan promised, and what the network takes."""

from __future__ import annotations

from collections.abc import Callable

from experiment.report.document import Block, Section, Table, Text
from experiment.report.label_styles import LabelStyles
from experiment.report.results_folder import Source
from experiment.report.results_table import compressed, variants_of
from experiment.report.words import numbers
from experiment.report.words.titles import variant_in_words

QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", numbers.whole),
    "flops": ("FLOPs", numbers.megas),
    "bytes": ("Bytes (kB)", numbers.kilobytes),
    "latency": ("Latency (ms)", lambda value: numbers.MISSING if value != value else f"{value:.3g}"),
    "memory": ("Memory (kB)", numbers.kilobytes),
}


def limited_quantities(source: Source, styles: LabelStyles) -> Section | None:
    """One row per method and keep ratio, means over networks; None where only parameters or FLOPs are limited."""
    frame, blocks = source.results, list[Block]()
    for variant in variants_of(frame):
        rows = compressed(frame[frame["variant"] == variant])
        found = [name for name in QUANTITIES if f"limit_{name}" in rows and rows[f"limit_{name}"].notna().any()]
        if not found:
            continue
        if len(variants_of(frame)) > 1:
            blocks.append(Text(f"Variant {variant_in_words(variant)}:"))
        columns = {f"{what}_{name}": name for name in found for what in _shown(name)}
        header = ["Method", "Keep ratio", *(_title(column, name) for column, name in columns.items())]
        groups = rows.groupby(["label", "keep_target"], sort=False, dropna=False)[list(columns)].mean()
        cells = [
            [styles.plain(str(label)), numbers.keep(keep), *(QUANTITIES[columns[c]][1](row[c]) for c in columns)]
            for (label, keep), (_, row) in zip(groups.index, groups.iterrows(), strict=True)
        ]
        blocks.append(Table(header, cells))
    text = "What the budget allows, and what the networks take. Latency is predicted from layers, then measured."
    return Section("Limits", [Text(text), *blocks]) if blocks else None


def _shown(name: str) -> tuple[str, ...]:
    return ("limit", "predicted", "measured") if name == "latency" else ("limit", "measured")


def _title(column: str, name: str) -> str:
    title = QUANTITIES[name][0]
    what = column.removesuffix(f"_{name}")
    return title if what == "measured" else f"{title}, {what}"
