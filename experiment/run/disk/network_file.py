"""network.pt: a specification in plain values and a state_dict, written whole and read without unpickling code.

Masked weights stand beside the state_dict, without their zeros, and rounded ones have no more bits than they need
(`experiment.run.disk.packed_tensors`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from torch import Tensor, nn

from experiment.errors import (
    CompressionError,
    ConfigError,
    Damaged,
    OtherVersion,
    StoreError,
    described,
    shortened,
)
from experiment.files import write_whole
from experiment.layers.build import build
from experiment.layers.masks import plain_name
from experiment.layers.plan import Plan
from experiment.layers.plan_format import MOST_DIMS, Name, PlanData, Size, first_fault
from experiment.layers.prepare_network import prepared
from experiment.layers.quantized_weights import named_dtypes
from experiment.networks import NETWORKS
from experiment.networks.make_network import make_network
from experiment.registry import InputShape, is_import_path
from experiment.run.disk.packed_tensors import decode_state, encode_state, pack, unpack
from experiment.tensor_file import read_tensors

MOST_REASON = 1000  # characters of torch's list of what differs
FORMAT = 3  # of network.pt
FORMATS = (
    1,
    2,
    FORMAT,
)  # that are read; 1 has masks and masked weights in the state_dict as they are, 2 all in 32 bits
MOST_INPUTS = 2**24  # elements of one input
MOST_VALUES, MOST_DEPTH = 10_000, 10  # of a network's settings
MOST_NAMES = 8  # of a kind in an error
THE_ORIGINAL = (
    "Pass the network that `compress` was given, of the same sizes: for one that was compressed twice that is the "
    "first result."
)
_MISFITS = (CompressionError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, IndexError, OverflowError)


def save_weights(
    path: Path, network: nn.Module, plan: Plan, architecture: Mapping[str, Any] | None, **about: str | float | None
) -> int:
    """Write a network; returns the bytes of the file.

    Args:
        architecture: how to make the original network again (name, settings, output_size, input_shape), None where only
            the user's own code can.
        about: plain facts to keep beside (method, keep, ...).
    """
    specification = {
        "format": FORMAT,
        "architecture": None if architecture is None else dict(architecture),
        "plan": plan.to_data(),
        "about": about,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    dtypes = named_dtypes(network)
    coded, rounded = encode_state(state, {n: dtypes[plain_name(n)] for n in state if plain_name(n) in dtypes})
    whole, masked = pack(coded)
    buffer = io.BytesIO()
    torch.save({"specification": specification, "state_dict": whole, "masked": masked, "rounded": rounded}, buffer)
    write_whole(path, buffer.getvalue())
    return buffer.tell()


class Architecture(BaseModel):
    """How the original network is made; the limits hold what an input and its outputs may take."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    settings: dict[Name, Any]
    output_size: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    input_shape: Annotated[list[Size], Field(min_length=1, max_length=MOST_DIMS)]
    tokens: StrictBool = False

    @model_validator(mode="after")
    def _is_bounded(self) -> Architecture:
        if math.prod(self.input_shape) > MOST_INPUTS:
            raise ValueError(f"inputs of more than {MOST_INPUTS:,} elements are not read")
        require_plain(self.settings)
        return self


class Specification(BaseModel):
    """What network.pt says of its network; `about` is for people."""

    format: StrictInt
    architecture: Architecture | None = None
    plan: PlanData
    about: dict[str, Any] = {}


class MaskedData(BaseModel):
    """See `experiment.run.disk.packed_tensors.Masked`."""

    model_config = ConfigDict(extra="forbid")

    mask: Name
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**40)]], Field(max_length=MOST_DIMS)]
    values: InstanceOf[Tensor]
    bits: InstanceOf[Tensor] | None = None
    gaps: InstanceOf[Tensor] | None = None


class RoundedData(BaseModel):
    """See `experiment.run.disk.packed_tensors.Rounded`."""

    dtype: StrictStr
    scales: InstanceOf[Tensor] | None = None


class Packed(BaseModel):
    """The weights of network.pt as they are stored, which takes no more than the file has."""

    state_dict: dict[Name, InstanceOf[Tensor]]
    masked: dict[Name, MaskedData] = {}
    rounded: dict[Name, RoundedData] = {}

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape in the state_dict that `unpacked` gives."""
        shapes = {name: tensor.shape for name, tensor in self.state_dict.items()}
        for name, parts in self.masked.items():
            shapes[name] = shapes[parts.mask] = torch.Size(parts.shape)
        return shapes

    def unpacked(self) -> dict[str, Tensor]:
        """The state_dict, in memory for all zeros of masked weights: compare `shapes` before.

        Raises: ValueError, KeyError: what is stored does not belong together.
        """
        state = unpack(self.state_dict, {n: p.model_dump(exclude_none=True) for n, p in self.masked.items()})
        return decode_state(state, {n: p.model_dump(exclude_none=True) for n, p in self.rounded.items()})


def require_plain(value: object, most: int = MOST_VALUES) -> None:
    """Raises: ValueError: the value is more than a few numbers and texts, in lists and mappings."""
    todo: list[tuple[object, int]] = [(value, 0)]
    for _ in range(most):
        if not todo:
            return
        one, depth = todo.pop()
        if isinstance(one, dict | list | tuple) and depth < MOST_DEPTH:
            children = [*one, *one.values()] if isinstance(one, dict) else one
            todo.extend((child, depth + 1) for child in children[:most])
        elif one is not None and type(one) not in (bool, int, float, str):
            raise ValueError("settings must be numbers, texts, lists and mappings")
    raise ValueError(f"settings of more than {most:,} values are not read")


def read_plain(path: Path) -> Any:
    """What a file of tensors and plain values holds, on the CPU.

    Raises: StoreError: the file is absent or damaged, or holds anything else. Nothing in it is executed.
    """
    try:
        return read_tensors(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file.") from error


def read_weights(path: Path) -> tuple[Specification, Packed]:
    """The specification and the weights of a file.

    Raises: StoreError: the file is absent, damaged, foreign, or of another format version. Nothing in it is executed.
    """
    content = read_plain(path)
    if not isinstance(content, dict) or not {"specification", "state_dict"} <= content.keys():
        raise StoreError(f"{path}: not written by this program: no specification and state_dict in it.")
    specification = content["specification"]
    version = specification.get("format") if isinstance(specification, dict) else None
    if type(version) is not int:
        raise Damaged(f"{path}: damaged: its specification has no format version.")
    if version not in FORMATS:
        raise OtherVersion(
            f"{path}: format version {described(version)}, this program reads {', '.join(map(str, FORMATS[:-1]))} and "
            f"{FORMAT}. Load it with the version that wrote it."
        )
    try:
        return Specification.model_validate(specification), Packed.model_validate(content)
    except ValidationError as error:
        raise Damaged(f"{path}: damaged: {first_fault(error)}.") from error


def original_of(
    specification: Specification, path: Path, own_names: Callable[[], Collection[str]]
) -> tuple[nn.Module, InputShape]:
    """The original network that a file says its own was made from, and the shape of one input.

    A registered network is on the `meta` device, where it has shapes and no weights: what the file says of its size
    costs no memory before it is compared with the weights. One of the user's own code has other weights.

    Args:
        own_names: the names in the parameter file: code that is imported is named there, and not by the file alone.
    Raises: StoreError: the file says nothing of it, or names code that nobody else does.
    """
    made = specification.architecture
    if made is None:
        raise StoreError(f"{path}: says nothing of the original network. Pass it: load_network(path, network=net).")
    if is_import_path(made.name) and made.name not in own_names():
        raise StoreError(
            f"{path}: its network is made by code, '{shortened(made.name)}', which no parameter file beside it names. "
            "Nothing is imported because a file says so. Pass the original network: load_network(path, network=net)."
        )
    shape = InputShape(made.input_shape, tokens=made.tokens)
    try:
        with torch.device("meta") if made.name in NETWORKS else nullcontext():
            return untrained_network(made.name, made.settings, shape, made.output_size), shape
    except ConfigError as error:
        raise StoreError(f"{path}: what it says of the original network is wrong: {error}") from error


def untrained_network(
    name: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], output_size: int
) -> nn.Module:
    """A network without the published weights that the settings of a registered one may ask for."""
    settings = {key: value for key, value in settings.items() if key != "pretrained" or name not in NETWORKS}
    return make_network(name, settings, input_shape, output_size)


def rebuild(original: nn.Module, specification: Specification, packed: Packed, path: Path) -> nn.Module:
    """The compressed network in eval mode, from the original architecture and what `read_weights` gave.

    Args:
        original: on any device; for one on `meta` the network is on the CPU.
    Raises: StoreError: the plan or the weights do not fit that architecture. CompressionError: the original is of a
        kind that cannot be compressed.
    """
    original = prepared(original).network
    try:
        network = build(original, Plan.from_data(specification.plan, original))
    except _MISFITS as error:
        raise StoreError(
            f"{path}: does not fit this network, which is another one than was compressed: "
            f"{shortened(str(error).strip(), MOST_REASON)} {THE_ORIGINAL}"
        ) from error
    try:
        load_packed(network, packed, path)
    except Damaged:
        raise
    except StoreError as error:
        raise StoreError(f"{error} {THE_ORIGINAL}") from error
    return network.eval()


def load_packed(network: nn.Module, packed: Packed, path: Path) -> None:
    """Write the weights of a file into the network that they are of, in place; one on `meta` gets them as its own.

    Raises: StoreError: they are of another network, or cannot be weights.
    """
    try:
        require_shapes(network, packed.shapes(), path)  # before memory is taken for what is masked
        load_state(network, packed.unpacked(), path)
    except _MISFITS as error:
        raise Damaged(f"{path}: damaged: {str(error).strip()}") from error


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state_dict into a network, in place; one on `meta` gets its tensors as its own.

    Raises: StoreError: it is that of another network, or holds what cannot be weights: NaN, codes, complex numbers.
    """
    require_shapes(network, {name: tensor.shape for name, tensor in state.items()}, path)
    own = network.state_dict()
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    kinds = [
        f"{name} holds {tensor.dtype}, expected {own[name].dtype}"
        for name, tensor in state.items()
        if _kind(tensor.dtype) != _kind(own[name].dtype)
    ]
    weights = {n: t for n, t in state.items() if n in parameters or n.endswith(("running_mean", "running_var"))}
    wild = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if kinds or wild:
        what = kinds or [f"{name} holds NaN or infinity" for name in wild]
        raise Damaged(f"{path}: holds what cannot be weights: {some(what)}.")
    if any(tensor.is_meta for tensor in own.values()):
        state = {
            name: tensor.to(own[name].dtype).clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
        network.load_state_dict(state, assign=True)
    else:
        network.load_state_dict(dict(state))


def require_shapes(network: nn.Module, shapes: Mapping[str, torch.Size], path: Path) -> None:
    """Raises: StoreError: tensors of these names and shapes are not the state_dict of the network; names all kinds."""
    own = network.state_dict()
    # torch fills in the count of batches, which files older than it lack
    missing = [name for name in own if name not in shapes and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in shapes if name not in own]
    reshaped = [
        f"{shortened(name)} {tuple(own[name].shape)}, in the file {tuple(shape)}"
        for name, shape in shapes.items()
        if name in own and own[name].shape != shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    if missing or unexpected or reshaped:
        differences = "; ".join(f"{what}: {some(names)}" for what, names in found if names)
        raise StoreError(
            f"{path}: its weights are not those of this network: {differences}. Expected a network of the same name, "
            "settings and outputSize."
        )


def some(names: Iterable[str]) -> str:
    """The first few of many names, for an error."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(shortened(name, 80) for name in names[:MOST_NAMES]) + more


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "float" if dtype.is_floating_point and dtype.itemsize > 1 else str(dtype)
    return "bool" if dtype == torch.bool else "integer"
