"""What an experiment computes: cells, which are the rows of its results, and in which order. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiment.config import Variant
from experiment.config.modes import is_cascade
from experiment.files import safe_name
from experiment.methods.configure import MethodSpec
from experiment.run.grid import keys
from experiment.run.grid.weights_file import GivenWeights


@dataclass(frozen=True)
class ReferenceSpec:
    """A trained, uncompressed network, shared by all experiments with the same key.

    Attributes:
        folder: its name in the folder of trained networks.
        rewind_epoch: the epoch whose weights are kept, for rewinding.
        weights: the file that its training starts from; None for random weights.
    """

    key: str
    folder: str
    net: int
    rewind_epoch: int | None
    weights: GivenWeights | None = None

    def epochs_left(self, num_epochs: int, trained_networks: Path) -> int:
        """How many epochs, of all that it trains, are missing from the folder of trained networks."""
        folder, rewind = trained_networks / self.folder, self.rewind_epoch
        if not (folder / "network.pt").is_file():
            return num_epochs
        return 0 if rewind is None or rewind_file(folder, rewind).is_file() else rewind


def rewind_file(folder: Path, epoch: int) -> Path:
    """The file for the weights of a reference network at the start of an epoch."""
    return folder / f"rewind-{epoch}.pt"


@dataclass(frozen=True)
class Cell:
    """One row of the results: (variant, net, repetition, method, keep ratio).

    Attributes:
        fixed_size: the method's settings or a search decide the size; `keep` is 1 then.
        epochs_retrain: of all trials if retraining is tuned, and of all networks that a search may try.
        samples: maximum number of networks tried in a search; 0 without search.
        made: the digest of everything that determines the network, without the test data.
        complete: the budget has amounts or shares of its own, which `keep` multiplies.
    """

    variant: str
    method: str
    label: str
    net: int
    repetition: int
    keep: float
    between: tuple[float, ...]
    key: str
    epochs_train: int
    epochs_retrain: int
    fixed_size: bool = False
    samples: int = 0
    made: str = ""
    complete: bool = False

    @property
    def keep_target(self) -> float | None:
        """The requested keep ratio, if there is one."""
        return None if self.fixed_size else self.keep

    @property
    def size(self) -> str:
        """The requested size in words."""
        if self.samples:
            return "smallest"
        if self.fixed_size:
            return "fixed size"
        share = f"keep {self.keep:.4g}"
        return share if not self.complete else f"{share} of the budget" if self.keep < 1 else "within the budget"

    @property
    def folder(self) -> str:
        parts = [self.label, f"n{self.net}", f"r{self.repetition}", f"{self.keep:.6g}", self.key]
        return "-".join(safe_name(p) for p in ([self.variant, *parts] if self.variant else parts))


@dataclass(frozen=True)
class Chain:
    """The cells of one (variant, net, repetition, method), in the order in which they are computed.

    In a cascade each cell starts from the previous one. Other cells share the analysis if one worker computes them.

    Attributes:
        tickets: in a cascade with random weights, the same cells with rewound weights, which are computed before: each
            cell takes its structure from the ticket at the same keep ratio.
    """

    variant: Variant
    reference: ReferenceSpec
    reference_cell: Cell
    method: MethodSpec
    repetition: int
    cells: tuple[Cell, ...]
    tickets: Chain | None = None

    @property
    def in_order(self) -> bool:
        """Whether each cell starts from the previous one. Otherwise cells may be computed in any order."""
        return is_cascade(self.variant.parameters.experiments) and not self.method.entry.restarts


@dataclass(frozen=True)
class ReferenceTask:
    """Train (or load) one reference network and test it: the row `Reference`."""

    variant: Variant
    reference: ReferenceSpec
    cell: Cell


def chain_key(chain: Chain) -> str:
    """The key of a whole chain: the name of its lock, if it is computed as a whole."""
    return keys.digest([cell.key for cell in chain.cells])
