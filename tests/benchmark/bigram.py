"""How well tables of counts predict `PythonDocs` or a `TextFile`: the perplexities that a network has to beat.

    python tests/benchmark/bigram.py
    python tests/benchmark/bigram.py TextFile '{"train": "a.txt", "test": "b.txt", "tokenizer": "characters"}'

Counts are those of the training part. Every token counts once more in the frequencies of tokens, and frequencies after
each token are smoothed by five tokens of those.
"""

import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from experiment.datasets.loading import load_source
from experiment.datasets.token_windows import Windows

SMOOTHING = 5


def main() -> None:
    name, settings = sys.argv[1:3] if sys.argv[1:] else ("PythonDocs", "{}")
    train, test = (tokens(name, json.loads(settings), part) for part in (True, False))
    size = int(torch.cat([train, test]).max()) + 1
    single = torch.bincount(train, minlength=size).double() + 1
    single /= single.sum()
    pairs = torch.zeros(size, size, dtype=torch.float64)
    pairs.index_put_((train[:-1], train[1:]), torch.ones((), dtype=torch.float64), accumulate=True)
    pairs += SMOOTHING * single
    pairs /= pairs.sum(1, keepdim=True)
    print(f"{len(train):,} training tokens, {len(test):,} test tokens, {size} kinds")
    print(f"perplexity of token frequencies {perplexity(single[test[1:]]):.2f}")
    print(f"perplexity of frequencies after each token {perplexity(pairs[test[:-1], test[1:]]):.2f}")


def tokens(name: str, settings: dict[str, object], train: bool) -> Tensor:
    items = load_source(name, settings, Path("data/datasets"), train, output_size=10**6).items
    if not isinstance(items, Windows):
        raise SystemExit(f"{name} is no text for language models: choose PythonDocs or TextFile.")
    return items.tokens


def perplexity(probabilities: Tensor) -> float:
    return math.exp(-float(probabilities.log().mean()))


if __name__ == "__main__":
    main()
