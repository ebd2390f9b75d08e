"""Where a cell starts: the network that it compresses, and the weights that it retrains."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from experiment.config import Parameters
from experiment.errors import OtherVersion, StoreError
from experiment.files import set_aside
from experiment.layers.build import expand
from experiment.layers.masks import named_masks
from experiment.layers.plan import Plan, State
from experiment.run.plan import Cell
from experiment.run.reference import Reference
from experiment.run.store import Store
from experiment.run.weights import read_weights, rebuild, untrained_network
from experiment.streams import seeded

RUN_AGAIN = "Run the command again with --retry-failed: it is computed anew, and so is what follows it."


def network_of(cell: Cell, store: Store, reference: Reference) -> tuple[nn.Module, State]:
    """The compressed network of a finished cell, and its weights on the original architecture.

    Raises: StoreError: it is gone, or damaged and set aside.
    """
    folder = store.index().get(cell.key)
    if folder is None:
        raise StoreError(f"the folder of the cell before it, {cell.folder}, is gone. {RUN_AGAIN}")
    try:
        specification, weights = read_weights(folder / "network.pt")
        network = rebuild(reference.network, specification, weights, folder / "network.pt")
    except OtherVersion:
        raise
    except StoreError as error:
        raise StoreError(f"{error} Set aside as {set_aside(folder).name}. {RUN_AGAIN}") from error
    # the plan of a file has no bits of masks: the network has them
    plan = replace(Plan.from_data(specification.plan, reference.network), masks=named_masks(network))
    return network, expand(network, reference.network, plan, reference.state.example)


def random_state(reference: Reference, p: Parameters, net: int, repetition: int) -> State:
    """The original network with fresh random weights, the same for all methods and keep ratios.

    A network of the user's own is what its factory makes when torch's generators are seeded otherwise.
    """
    example = reference.state.example
    channels, height, width = example.shape[1:]
    shape = (channels, height, width)
    with seeded("reinitialisation", p.seed, net, repetition):
        network = untrained_network(p.network.name, p.network.settings, shape, p.network.output_size)
    return State(network.to(example.device).eval(), example)
