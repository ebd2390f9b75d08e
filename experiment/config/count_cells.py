"""Limits on the size of a grid, checked before it is expanded, so that a typo in a number costs no time or memory."""

import math
from collections.abc import Iterator, Sequence

from experiment.config.schema.parameter_file import Parameters
from experiment.config.value_tree import KeyPath, Node, find
from experiment.config.variants import Variant, keep_steps

MOST_CELLS = 100_000
MOST_ENTRIES = {("customizations",): 1_000, ("experiments", "methods"): 1_000}


def lists_too_long(root: Node) -> Iterator[tuple[KeyPath, str]]:
    """Lists with too many entries to check."""
    for path, most in MOST_ENTRIES.items():
        node = find(root, path)
        if node is not None and isinstance(node.value, list) and len(node.value) > most:
            yield path, f"has {len(node.value):,} entries. At most {most:,} are allowed. Use several files."


def grid_too_large(variants: Sequence[Variant]) -> Iterator[tuple[KeyPath, str]]:
    """Whether all variants together have too many cells, with the key that contributes most."""
    cells = sum(math.prod(count for _, count, _ in _factors(v.parameters)) for v in variants)
    if cells > MOST_CELLS:  # so there is at least one variant
        factors = [*_factors(variants[0].parameters), (("customizations",), len(variants), "customizations")]
        product = " x ".join(f"{_number(count)} {what}" for _, count, what in factors if count > 1)
        key = max(factors, key=lambda factor: factor[1])[0]
        yield key, f"{product}: {_number(cells)} cells. At most {MOST_CELLS:,} are allowed."


def _factors(p: Parameters) -> list[tuple[KeyPath, int, str]]:
    """(key, number, unit) of the factors of a variant's number of cells, without references."""
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
