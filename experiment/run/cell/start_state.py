"""The state from which a cell starts: the network that it compresses, and the weights that it retrains."""

from dataclasses import replace

from torch import Tensor, nn

from experiment.config import Parameters
from experiment.errors import OtherVersion, StoreError
from experiment.files import set_aside
from experiment.inputs import device_of, form_of
from experiment.layers.build import expand
from experiment.layers.copied_network import copied
from experiment.layers.masks import named_masks
from experiment.layers.plan import Plan, State
from experiment.layers.prepare_network import prepared
from experiment.layers.unfused.replace import split_state
from experiment.random_streams import seeded
from experiment.run.cell.reference import Reference
from experiment.run.disk.load_weights import load_state, read_plain
from experiment.run.disk.network_file import read_weights, rebuild, untrained_network
from experiment.run.disk.store import Store
from experiment.run.grid.cells import Cell, ReferenceSpec, rewind_file


class StartLost(StoreError):
    """The network from which a cell starts was removed, or was damaged and set aside: both are computed again."""


def network_of(cell: Cell, store: Store, reference: Reference) -> tuple[nn.Module, State]:
    """The compressed network of a finished cell, and its weights in the original architecture.

    Raises: StartLost: it is missing, or damaged and was set aside.
    """
    folder = store.find(cell)
    if folder is None:
        raise StartLost(f"the folder of the previous cell, {cell.folder}, was removed. The cell is computed again.")
    try:
        specification, weights = read_weights(folder / "network.pt")
        network = rebuild(reference.network, specification, weights, folder / "network.pt")
    except OtherVersion:
        raise
    except StoreError as error:
        aside = f"Set aside as {set_aside(folder).name}; " if folder.is_dir() else ""
        raise StartLost(f"{error} {aside}the cell is computed again.") from error
    # the plan in a file has no masks: they are stored with the weights
    plan = replace(Plan.from_data(specification.plan, reference.network), masks=named_masks(network))
    return network, expand(network, reference.network, plan, reference.state.example)


def rewound_state(reference: Reference, spec: ReferenceSpec) -> State:
    """The reference network at the start of its rewind epoch.

    Raises: StartLost: those weights are missing, or damaged and were set aside.
    """
    network = copied(reference.network)
    assert spec.rewind_epoch is not None
    path = rewind_file(reference.folder, spec.rewind_epoch)
    try:
        content = read_plain(path)
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise StoreError(f"{path}: is not a state_dict.")
        load_state(network, split_state(content, reference.state.unfused), path)
    except StoreError as error:
        if path.exists():
            set_aside(path)
        raise StartLost(f"{error} It is computed again.") from error
    return replace(reference.state, network=network)


def random_state(reference: Reference, p: Parameters, net: int, repetition: int) -> State:
    """The original network with new random weights, the same for all methods and keep ratios."""
    example = reference.state.example
    with seeded("reinitialisation", p.seed, net, repetition):
        network = untrained_network(
            p.network.name, p.network.settings, form_of(example), p.network.output_size, example
        )
    plain = prepared(network.to(device_of(example)).eval())
    return State(plain.network, example, unfused=plain.unfused)
