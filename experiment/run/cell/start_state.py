"""Where a cell starts: the network that it compresses, and the weights that it retrains."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import Tensor, nn

from experiment.config import Parameters
from experiment.errors import OtherVersion, StoreError
from experiment.files import set_aside
from experiment.layers.build import expand
from experiment.layers.masks import named_masks
from experiment.layers.plan import Plan, State
from experiment.random_streams import seeded
from experiment.registry import InputShape
from experiment.run.cell.reference import Reference, rewind_file
from experiment.run.disk.load_weights import load_state, read_plain
from experiment.run.disk.network_file import read_weights, rebuild, untrained_network
from experiment.run.disk.store import Store
from experiment.run.grid.plan import Cell, ReferenceSpec


class Gone(StoreError):
    """What a cell starts from is not there any more, or was damaged and set aside: it is made again, then the cell."""


def network_of(cell: Cell, store: Store, reference: Reference) -> tuple[nn.Module, State]:
    """The compressed network of a finished cell, and its weights on the original architecture.

    Raises: Gone: it is not there, or damaged and set aside.
    """
    folder = store.find(cell)
    if folder is None:
        raise Gone(f"the folder of the cell before it, {cell.folder}, is gone: it is computed again.")
    try:
        specification, weights = read_weights(folder / "network.pt")
        network = rebuild(reference.network, specification, weights, folder / "network.pt")
    except OtherVersion:
        raise
    except StoreError as error:
        aside = f"Set aside as {set_aside(folder).name}, and computed again." if folder.is_dir() else "Computed again."
        raise Gone(f"{error} {aside}") from error
    # the plan of a file has no bits of masks: the network has them
    plan = replace(Plan.from_data(specification.plan, reference.network), masks=named_masks(network))
    return network, expand(network, reference.network, plan, reference.state.example)


def rewound_state(reference: Reference, spec: ReferenceSpec) -> State:
    """The reference network as it was at the start of its rewind epoch.

    Raises: Gone: those weights are not there, or of another network and set aside.
    """
    network = copy.deepcopy(reference.network)
    assert spec.rewind_epoch is not None
    path = rewind_file(reference.folder, spec.rewind_epoch)
    try:
        content = read_plain(path)
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise StoreError("is not a state_dict.")
        load_state(network, content, path)
    except StoreError as error:
        if path.exists():
            set_aside(path)
        raise Gone(f"{path}: {error} Made again.") from error
    return State(network, reference.state.example)


def random_state(reference: Reference, p: Parameters, net: int, repetition: int) -> State:
    """The original network with fresh random weights, the same for all methods and keep ratios.

    A network of the user's own is what its factory makes when torch's generators are seeded otherwise.
    """
    example = reference.state.example
    shape = InputShape(example.shape[1:], tokens=not example.is_floating_point())
    with seeded("reinitialisation", p.seed, net, repetition):
        network = untrained_network(p.network.name, p.network.settings, shape, p.network.output_size)
    return State(network.to(example.device).eval(), example)
