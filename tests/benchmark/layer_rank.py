"""Exact against randomised SVD of one trained layer over a grid of ranks: seconds, errors, and bounds of the errors.

    python -m experiment.main param/mnist/rank/onelayer.yaml
    python tests/benchmark/layer_rank.py param/mnist/rank/onelayer.yaml --layer fc2 --csv out.csv

Errors are those of the truncated factors, relative to the weight's operator norm, or its Frobenius norm (`_f`), and
measured with all singular values of what is left. `expected_2` bounds the mean of `randomised_2` over Gaussians (Halko,
Martinsson and Tropp 2011, theorem 10.6); `posterior_2` is their equation 4.3 for the Gaussian at hand, wrong with
probability 1e-10.

Seconds are medians of several calls in the precision given; the exact one serves all ranks. `forward_ms` is a batch
through the two factors, in the row of rank 0 through the dense weight.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rows import Row, show
from torch import Tensor

from experiment import load_network
from experiment.methods.lowrank.randomised_svd import TruncatedSVD, norm_bound, sketch
from experiment.random_streams import generator

RANKS = (10, 25, 50, 100, 200, 400)
ERRORS = ("exact_2", "randomised_2", "expected_2", "posterior_2", "exact_f", "randomised_f")
WIDTHS = {"rank": 5}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    network = load_network(arguments.experiment, method="Reference")
    weight = network.get_submodule(arguments.layer).get_parameter("weight").detach().flatten(1)
    precision = {"float32": torch.float32, "float64": torch.float64}[arguments.precision]
    rows = measure(weight.to(precision), arguments.ranks, arguments.oversampling, arguments.power, arguments.batch)
    show(rows, WIDTHS, arguments.csv)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="parameter file or folder of an experiment that has been run")
    parser.add_argument("--layer", default="fc2")
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--oversampling", type=int, default=10)
    parser.add_argument("--power", type=int, default=2, help="power iterations")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float64")
    parser.add_argument("--batch", type=int, default=64, help="inputs of the timed forward pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    return parser.parse_args()


def measure(W_RN: Tensor, ranks: list[int], oversampling: int, power: int, batch: int) -> Iterator[Row]:
    """A row for the dense layer, then one a rank."""
    exact_s = seconds(lambda: torch.linalg.svd(W_RN, full_matrices=False), 3)
    sigma = torch.linalg.svdvals(W_RN.double())
    x_BN = torch.randn(batch, W_RN.shape[1], generator=generator("inputs"))
    dense = W_RN.float()
    row: Row = {"rank": 0, "exact_s": f"{exact_s:.3f}", "randomised_s": ""} | dict.fromkeys(ERRORS, "")
    yield row | {"forward_ms": f"{1e3 * seconds(lambda: x_BN @ dense.mT, 50):.3f}"}
    for rank in ranks:
        decompose = partial(
            randomised_svd, W_RN, rank, oversampling=oversampling, power=power
        )  # a generator each call, for the same Gaussians
        taken = seconds(lambda decompose=decompose, rank=rank: decompose(generator=generator("benchmark", rank)), 5)
        made = decompose(generator=generator("benchmark", rank))
        bound = expected_bound(sigma, rank, oversampling, power)
        errors = errors_of(W_RN.double(), sigma, made, rank, bound)
        U, V = (made.U * made.S).float(), made.Vt.float()
        row = {"rank": rank, "exact_s": f"{exact_s:.3f}", "randomised_s": f"{taken:.3f}"}
        row |= {name: f"{value:.4f}" for name, value in zip(ERRORS, errors, strict=True)}
        yield row | {"forward_ms": f"{1e3 * seconds(lambda U=U, V=V: (x_BN @ V.mT) @ U.mT, 50):.3f}"}


def randomised_svd(A_RN: Tensor, rank: int, generator: torch.Generator, oversampling: int, power: int) -> TruncatedSVD:
    size = min(rank + oversampling, *A_RN.shape)
    return sketch(A_RN, size, power, generator).svd(size, rank)


def expected_bound(sigma: Tensor, rank: int, oversampling: int, power: int) -> float:
    """The bound of E ||A - What||_2 (theorem 10.6; 9.2 for power iterations; 9.3 for cutting to the rank)."""
    largest, exponent = float(sigma[0]) or 1.0, 2 * power + 1
    tail = (sigma[rank:].double() / largest) ** exponent
    first = (1 + math.sqrt(rank / (oversampling - 1))) * float(tail[0])
    second = math.e * math.sqrt(rank + oversampling) / oversampling * float(tail.norm())
    return largest * (first + second) ** (1 / exponent) + float(sigma[rank])


def errors_of(W_RN: Tensor, sigma: Tensor, made: TruncatedSVD, rank: int, bound: float) -> tuple[float, ...]:
    """The columns ERRORS; `bound` is that of the expected error."""
    left_RN = W_RN - (made.U * made.S).double() @ made.Vt.double()
    values = torch.linalg.svdvals(left_RN)
    norm, frobenius, exact = float(sigma[0]), float(sigma.norm()), float(sigma[rank])
    posterior = norm_bound(left_RN, generator("probes", rank))
    of_norm = (exact, float(values[0]), bound, posterior)
    return *(e / norm for e in of_norm), float(sigma[rank:].norm()) / frobenius, float(values.norm()) / frobenius


def seconds(call: Callable[[], object], calls: int) -> float:
    """The median time of a call, after one that does not count."""
    call()
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
