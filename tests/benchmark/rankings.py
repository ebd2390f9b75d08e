"""Whether methods rank alike on different networks: Spearman's correlation of their figures, with bootstrap intervals.

    python -m experiment.main param/images/rivals.yaml
    python tests/benchmark/transformer_curves.py gpt --folder data/transformers --retraining 0 --keeps 0.8 0.5 0.3
    python tests/benchmark/transformer_curves.py vit --folder data/transformers --retraining 0 --keeps 0.8 0.5 0.3
    python tests/benchmark/rankings.py data/results/images/rivals/results.csv data/transformers/{gpt,vit}.csv

Methods that all tables have count, by their labels: `--methods`, and `--settings` with `--label`, add those of the file
to the tables of the transformers. The intervals hold 95 % of 2,000 draws of methods with replacement.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

WORSE = {"top1": -1, "perplexity": 1, "error": 1}  # the sign that makes larger figures worse
DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.8, 0.5, 0.3])
    a = parser.parse_args()
    found = {path: harms(path) for path in a.tables}
    same = sorted(set.intersection(*(set(table.index) for table in found.values())))
    print(f"{len(same)} methods: {', '.join(same)}")
    for keep in a.keeps:
        for one, other in combinations(a.tables, 2):
            x, y = (found[path].loc[same, keep].to_numpy() for path in (one, other))
            low, high = interval(x, y)
            print(f"keep {keep:g}  {name(one)}, {name(other)}: {spearmanr(x, y)[0]:.2f} ({low:.2f} to {high:.2f})")


def harms(path: Path) -> pd.DataFrame:
    """The figure of every method at every keep ratio; larger is worse."""
    frame = pd.read_csv(path)
    ours = "keep_target" in frame
    figure = "top1" if ours else "perplexity" if path.stem == "gpt" else "error"
    frame = frame[frame["method"] != "Reference"].assign(harm=frame[figure] * WORSE[figure])
    return frame.pivot_table(
        index="label" if ours else "method", columns="keep_target" if ours else "keep", values="harm"
    )


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    random = np.random.default_rng(0)
    drawn = [random.integers(len(x), size=len(x)) for _ in range(DRAWS)]
    low, high = np.nanquantile([spearmanr(x[i], y[i])[0] for i in drawn], [0.025, 0.975])
    return float(low), float(high)


def name(path: Path) -> str:
    return path.parent.name if path.stem == "results" else path.stem


if __name__ == "__main__":
    main()
