"""How many cells a file asks for, before any of them is made: a slip of a few zeros costs a second and no memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from experiment.config.schema.parameter_file import Parameters
from experiment.config.value_tree import KeyPath, Node
from experiment.config.variants import Variant, keep_steps

MOST_CELLS = 100_000
MOST_ENTRIES = {("customizations",): 1_000, ("experiments", "methods"): 1_000}


def length_faults(root: Node) -> Iterator[tuple[KeyPath, str]]:
    """Lists of a file that are too long to be tried one by one."""
    for path, most in MOST_ENTRIES.items():
        node: Node | None = root
        for key in path:
            node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
        if node is not None and isinstance(node.value, list) and len(node.value) > most:
            yield path, f"has {len(node.value):,} entries. At most {most:,}. Write several files."


def size_fault(variants: Sequence[Variant]) -> tuple[KeyPath, str] | None:
    """Why the grid of all variants is too large, with the key that asks for most of it; None where it is not."""
    cells = sum(math.prod(count for _, count, _ in _factors(v.parameters)) for v in variants)
    if cells <= MOST_CELLS:
        return None
    factors = [*_factors(variants[0].parameters), (("customizations",), len(variants), "customizations")]
    product = " x ".join(f"{_number(count)} {what}" for _, count, what in factors if count > 1)
    key = max(factors, key=lambda factor: factor[1])[0]
    return key, f"{product}: {_number(cells)} cells. At most {MOST_CELLS:,}. Ask for fewer."


def _factors(p: Parameters) -> list[tuple[KeyPath, int, str]]:
    """(key, number, what) of what a variant is the product of; references are no cells here."""
    experiments, nets = p.experiments, (("experiments", "numNets"), p.experiments.num_nets, "networks")
    if experiments.mode == "train":
        return [nets]
    steps = 1 if experiments.search is not None else max(1, len(keep_steps(experiments)))
    return [
        nets,
        (("experiments", "numRepetitions"), experiments.num_repetitions, "repetitions"),
        (("experiments", "methods"), max(1, len(experiments.methods)), "methods"),
        (("experiments", "spacing"), steps, "keep ratios"),
    ]


def _number(count: int) -> str:
    return f"{count:,}" if count < 10**21 else "more than 10^21"
