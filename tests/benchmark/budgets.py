"""Budgets of several networks and methods: what was asked for, predicted, and measured.

    python tests/benchmark/budgets.py --networks resnet20 gpt --methods FT ALDS --threads 2 --csv out.csv

Weights are random. `measured_again` is another measurement of the finished network, as results.csv has it with
`measure: [latency]`: beside no other network, in the faster layout. Nothing else should run.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from latency_model import NETWORKS, made
from rows import Row, show

from experiment import compress
from experiment.errors import InfeasibleBudget
from experiment.measure.latency import measure_latency

BUDGETS: tuple[dict[str, float | str], ...] = (
    {"latency": 0.7}, {"latency": 0.5}, {"latency": 0.35}, {"bytes": 0.25}, {"memory": 0.8},
    {"latency": 0.6, "bytes": 0.4}, {"latency": 0.6, "bytes": 0.4, "flops": 0.35},
)  # fmt: skip
WIDTHS = {"network": 12, "budget": 52, "limit": 10, "predicted": 10, "measured": 10, "measured_again": 14}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "resnet18", "vit", "gpt"])
    parser.add_argument("--methods", nargs="+", default=["FT", "ALDS"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    show(rows(parser.parse_args()), WIDTHS, parser.parse_args().csv)


def rows(a: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(a.threads)
    for name, method in product(a.networks, a.methods):
        network, example = made(name)
        data = example if example.dtype == torch.int64 else torch.randn(64, *example.shape[1:])
        for budget in BUDGETS:
            row: Row = {"network": name, "method": method, "budget": str(budget)}
            try:
                result = compress(
                    network, method, budget={**budget, "batch": a.batch}, example=example, data=data, progress=False
                )
            except InfeasibleBudget as error:
                limit, nearest = error.limit, error.smallest
                yield row | amounts(error.quantity, limit, "infeasible", f">= {nearest / limit:.2f} of it", "")
                continue
            for quantity, amount in result.amounts.items():
                again = ""
                if quantity == "latency":
                    again = f"{measure_latency(result.network, example, a.batch, a.threads).median_ms:.3f}"
                yield row | amounts(quantity, amount.limit, f"{amount.predicted:.6g}", f"{amount.measured:.6g}", again)


def amounts(quantity: str, limit: float, predicted: str, measured: str, again: str) -> Row:
    return {
        "quantity": quantity, "limit": f"{limit:.6g}", "predicted": predicted, "measured": measured,
        "measured_again": again,
    }  # fmt: skip


if __name__ == "__main__":
    main()
