"""Starting a network from a file of trained weights, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from experiment.errors import StoreError, described
from experiment.layers.prepare_network import without_prefixes
from experiment.run.disk.network_file import load_state, read_plain, some
from experiment.run.grid.weights_file import GivenWeights, content_hash

WRAPPERS = ("state_dict", "model")  # under which training scripts, and this program, keep the weights


def load_given(network: nn.Module, given: GivenWeights) -> None:
    """Write the weights and buffers of a file into a network, in place; every one must be there, and no other.

    Raises: StoreError: the file is gone, damaged, no longer what it was, or of another network; all that differs is
        named. Nothing in it is executed.
    """
    content = read_plain(given.path)
    if content_hash(given.path) != given.content:
        raise StoreError(f"{given.path}: has changed since the experiment was planned. Run the command again.")
    state = _state_dict(content, given)
    load_state(network, state, given.path)


def _state_dict(content: object, given: GivenWeights) -> dict[str, Tensor]:
    """The tensors by name, out of whatever they are wrapped in."""
    if isinstance(content, Mapping):
        if _is_compressed(content.get("specification")):
            raise StoreError(f"{given.path}: holds a compressed network. Expected the weights of a whole one.")
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    entries = content.items() if isinstance(content, Mapping) else ()
    if not entries or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        raise StoreError(
            f"{given.path}: expected a state_dict (names and tensors), alone or under {' or '.join(WRAPPERS)}. Got "
            f"{_described(content)}. Write one with torch.save(net.state_dict(), path)."
        )
    return without_prefixes({str(name): tensor for name, tensor in entries})


def _is_compressed(specification: object) -> bool:
    """Whether a file's specification, whoever wrote it, has a plan that says anything."""
    plan = specification.get("plan") if isinstance(specification, Mapping) else None
    return isinstance(plan, Mapping) and any(isinstance(part, dict | list) and part for part in plan.values())


def _described(content: object) -> str:
    kind = type(content).__name__
    names = (
        [name if isinstance(name, str) else described(name) for name in content] if isinstance(content, dict) else []
    )
    return f"a {kind} of {some(names)}" if names else f"a {kind}"
