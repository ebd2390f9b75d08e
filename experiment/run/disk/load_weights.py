"""Loading a state_dict into a network, in place, from any source. Nothing in a file is executed."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import Damaged, StoreError, described, kind_of, shortened
from experiment.layers.prepare_network import without_prefixes
from experiment.run.disk.shards import Shards
from experiment.run.grid.weights_file import GivenWeights, given_hash
from experiment.tensor_file import load_tensors, read_tensors

WRAPPERS = ("state_dict", "model")  # keys under which training scripts, and this program, store the weights
MAX_NAMES = 8  # of a kind in an error


def read_plain(path: Path) -> Any:
    """The tensors and plain values in a file, on the CPU.

    Raises: StoreError: the file is missing or damaged, or contains anything else.
    """
    try:
        return read_tensors(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file.") from error


def load_given(network: nn.Module, given: GivenWeights) -> None:
    """Load the weights file that a parameter file names; it must hold exactly the weights and buffers of the network.

    Of safetensors files one tensor at a time is in memory beside the network.

    Raises: StoreError: the file is missing or damaged, has changed since planning, or belongs to another network.
    """
    in_shards = given.path.suffix in (".safetensors", ".json")
    state = Shards(given.path, network) if in_shards else _state_dict(read_plain(given.path), given.path)
    if given_hash(given.path) != given.content:
        raise StoreError(f"{given.path}: has changed since the experiment was planned. Run the command again.")
    load_state(network, state, given.path)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state_dict into a network; a network on `meta` takes the tensors themselves.

    Raises: StoreError: it belongs to another network. Damaged: it contains NaN, infinity or the wrong kind of dtype.
    """
    shapes = state.shapes() if isinstance(state, Shards) else {name: tensor.shape for name, tensor in state.items()}
    require_shapes(network, shapes, path)
    own = network.state_dict()
    _check_values(network, own, state, path)
    counts = {name for name in own if name.endswith("num_batches_tracked")}  # which files of torch before 0.4.1 lack
    zeros = {name: torch.zeros_like(own[name], device="cpu") for name in counts - set(state)}
    if any(tensor.is_meta for tensor in own.values()):
        load_tensors(network, zeros | _copies(network, state), assign=True)
    elif isinstance(state, Shards):
        with torch.no_grad():
            for name, tensor in itertools.chain(zeros.items(), state.items()):
                own[name].copy_(tensor)
    else:
        load_tensors(network, zeros | dict(state))


def _check_values(network: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    problems = []
    for name, tensor in state.items():
        is_weight = name in parameters or name.endswith(("running_mean", "running_var"))
        if _kind(tensor.dtype) != _kind(own[name].dtype):
            problems.append(f"{name} holds {tensor.dtype}, expected {own[name].dtype}")
        elif is_weight and not bool(tensor.isfinite().all()):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise Damaged(f"{path}: contains values that cannot be weights: {first_names(problems)}.")


def _copies(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network on `meta`; one for all names of a parameter, so that tied layers stay tied."""
    held, shared, copies = network.state_dict(keep_vars=True), dict[int, Tensor](), dict[str, Tensor]()
    for name, tensor in state.items():
        if id(held[name]) not in shared:
            copy = tensor.to(held[name].dtype).clone(memory_format=torch.contiguous_format)
            learned = isinstance(held[name], nn.Parameter)
            shared[id(held[name])] = nn.Parameter(copy, held[name].requires_grad) if learned else copy
        copies[name] = shared[id(held[name])]
    return copies


def require_shapes(network: nn.Module, shapes: Mapping[str, torch.Size], path: Path) -> None:
    """Raises: StoreError: these are not the names and shapes of the network's state_dict. Lists all differences."""
    own = network.state_dict()
    if (prefix := other_prefix(own, shapes, exact=True)) is not None:
        text, renamed = prefix
        rename = f"state = {{{renamed}: tensor for n, tensor in state.items()}}; torch.save(state, path)"
        raise StoreError(f"{path}: its weights do not fit this network: {text}. Rename them: {rename}.")
    # files of old versions of torch have no count of batches
    missing = [name for name in own if name not in shapes and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in shapes if name not in own]
    reshaped = [
        f"{shortened(name)} {tuple(own[name].shape)}, in the file {tuple(shape)}"
        for name, shape in shapes.items()
        if name in own and own[name].shape != shape
    ]
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {first_names(names)}" for kind, names in differences.items() if names)
        raise StoreError(
            f"{path}: its weights do not fit this network: {listed}. Expected a network of the same name, "
            "settings and outputSize."
        )


def other_prefix(own: Collection[str], stored: Collection[str], *, exact: bool = False) -> tuple[str, str] | None:
    """How names in a file differ if all of them, or all of the network's, have a prefix; and n renamed, as code.

    All names must be the same without it if `exact`, else some, as for a compressed network.
    """
    if prefix := _prefix(stored, own, exact):
        text = f"all names in the file begin with '{prefix}', those of the network do not"
        return text, f"n.removeprefix('{prefix}')"
    if prefix := _prefix(own, stored, exact):
        return f"all names of the network begin with '{prefix}', those in the file do not", f"'{prefix}' + n"
    return None


def _prefix(names: Collection[str], others: Collection[str], exact: bool) -> str:
    """What all names begin with and none of the others, if some, or all, are the same behind it; else empty."""
    first = next(iter(names), "")
    for prefix in (first[: i + 1] for i, letter in enumerate(first) if letter == "."):
        shared = all(name.startswith(prefix) for name in names) and not any(name.startswith(prefix) for name in others)
        renamed = {name.removeprefix(prefix) for name in names}
        different = [name for name in renamed ^ {*others} if not name.endswith("num_batches_tracked")]
        if shared and (not different if exact else renamed & {*others}):
            return shortened(prefix)
    return ""


def first_names(names: Iterable[str]) -> str:
    """The first few of many names, for an error."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(shortened(name, 80) for name in names[:MAX_NAMES]) + more


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The state_dict in the content of a file, without its wrapper and without prefixes of its names."""
    if isinstance(content, Mapping):
        if _is_compressed(content.get("specification")):
            raise StoreError(f"{path}: holds a compressed network. Expected the weights of an uncompressed one.")
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    entries = content.items() if isinstance(content, Mapping) else ()
    if not entries or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        raise StoreError(
            f"{path}: expected a state_dict (names and tensors), alone or under {' or '.join(WRAPPERS)}. Got "
            f"{_described(content)}. Write one with torch.save(net.state_dict(), path)."
        )
    return without_prefixes({str(name): tensor for name, tensor in entries})


def _is_compressed(specification: object) -> bool:
    plan = specification.get("plan") if isinstance(specification, Mapping) else None
    return isinstance(plan, Mapping) and any(isinstance(part, dict | list) and part for part in plan.values())


def _described(content: object) -> str:
    names = []
    if isinstance(content, dict):
        names = [name if isinstance(name, str) else described(name) for name in content]
    return kind_of(content) + (f" of {first_names(names)}" if names else "")


def _kind(dtype: torch.dtype) -> str:
    """Weights may be stored in any floating-point dtype, but integers are not converted to them."""
    if dtype.is_floating_point or dtype.is_complex:
        return "float" if dtype.is_floating_point and dtype.itemsize > 1 else str(dtype)
    return "bool" if dtype == torch.bool else "integer"
