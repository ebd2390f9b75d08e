"""Coverage of the intervals of paired differences, and false winners, on simulated networks whose truth is known.

    python tests/benchmark/paired_intervals.py

A test sample is right if a normal variable is positive: the sum of the skill of the method, the difficulty of the
sample, and random parts of sample and method, of network and method, and of all three. The 95 % interval of the
difference of two methods covers the truth or not. Of four equal methods, Holm's procedure finds two that differ, a
false winner, or none.
"""

import argparse
import itertools
import math
from statistics import median

import numpy as np
from scipy.special import ndtr

from experiment.report.paired import between_networks, holm, paired_difference

SAMPLE, SAMPLE_METHOD = 2.0, 0.3  # standard deviations beside that of a single answer, 1
CASES = {  # skills of the two methods, standard deviation of network and method
    "equal": (1.5, 1.5, 0.0),
    "equal, networks differ": (1.5, 1.5, 0.05),
    "unequal": (1.5, 1.3, 0.0),
    "unequal, networks differ": (1.5, 1.3, 0.05),
    "unequal, networks differ much": (1.5, 1.3, 0.2),
    "nearly always right": (4.0, 3.8, 0.05),
}


def answers(rng, skills, networks, samples, network_method):
    """Right answers (methods, R, N)."""
    shared = rng.normal(0, SAMPLE, samples)
    found = []
    for skill in skills:
        own = rng.normal(0, SAMPLE_METHOD, samples) + rng.normal(0, network_method, (networks, 1))
        found.append(skill + shared + own + rng.normal(0, 1, (networks, samples)) > 0)
    return np.array(found, dtype=float)


def true_share(skill, network_method):
    return ndtr(skill / math.sqrt(1 + SAMPLE**2 + SAMPLE_METHOD**2 + network_method**2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="simulated experiments per entry (default: 1000)")
    draws = parser.parse_args().draws
    rng = np.random.default_rng(0)
    print(f"| networks | samples | {' | '.join(CASES)} | false winners |")
    print("|---" * (len(CASES) + 3) + "|")
    for networks, samples in itertools.product((1, 2, 3, 5), (360, 2000)):
        entries = []
        for first, second, differ in CASES.values():
            if networks == 1:
                differ = 0.0  # one network's interval is about test samples alone
            truth, covered = true_share(first, differ) - true_share(second, differ), 0
            for _ in range(draws):
                pair = answers(rng, (first, second), networks, samples, differ)
                found = paired_difference(*pair)
                covered += found.low <= truth <= found.high
            entries.append(f"{100 * covered / draws:.1f}")
        false = 0
        for _ in range(draws):
            four = answers(rng, (1.5,) * 4, networks, samples, 0.0 if networks == 1 else 0.1)
            pairs = list(itertools.combinations(four, 2))
            usual = median(between_networks(*pair) for pair in pairs)
            false += min(holm([paired_difference(*pair, usual).p for pair in pairs])) < 0.05
        print(f"| {networks} | {samples} | {' | '.join(entries)} | {100 * false / draws:.1f} |", flush=True)


if __name__ == "__main__":
    main()
