"""Starting a network from a file of trained weights, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from experiment.errors import StoreError
from experiment.layers.prepared import without_prefixes
from experiment.run.given import GivenWeights, content_hash
from experiment.run.weights import read_plain

WRAPPERS = ("state_dict", "model")  # under which training scripts, and this program, keep the weights
MOST_NAMES = 8  # of a kind in an error


def load_given(network: nn.Module, given: GivenWeights) -> None:
    """Write the weights and buffers of a file into a network, in place; every one must be there, and no other.

    Raises: StoreError: the file is gone, damaged, no longer what it was, or of another network; all that differs is
        named. Nothing in it is executed.
    """
    content = read_plain(given.path)
    if content_hash(given.path) != given.content:
        raise StoreError(f"{given.path}: has changed since the experiment was planned. Run the command again.")
    state = _state_dict(content, given)
    own = network.state_dict()
    # torch fills in the count of batches, which files older than it lack
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(own[name].shape)}, in the file {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    if missing or unexpected or reshaped:
        differences = "; ".join(f"{what}: {_some(names)}" for what, names in found if names)
        raise StoreError(
            f"{given.path}: its weights are not those of this network: {differences}. Expected a network of the same "
            f"name, settings and outputSize."
        )
    network.load_state_dict(state)


def _state_dict(content: object, given: GivenWeights) -> dict[str, Tensor]:
    """The tensors by name, out of whatever they are wrapped in."""
    if isinstance(content, Mapping):
        specification = content.get("specification")
        if isinstance(specification, Mapping) and any(specification.get("plan", {}).values()):
            raise StoreError(f"{given.path}: holds a compressed network. Expected the weights of a whole one.")
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise StoreError(
            f"{given.path}: expected a state_dict (names and tensors), alone or under {' or '.join(WRAPPERS)}. Got "
            f"{_described(content)}. Write one with torch.save(net.state_dict(), path)."
        )
    return without_prefixes({str(name): tensor for name, tensor in content.items()})


def _described(content: object) -> str:
    kind = type(content).__name__
    return f"a {kind} of {_some(map(str, content))}" if isinstance(content, Mapping) and content else f"a {kind}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
