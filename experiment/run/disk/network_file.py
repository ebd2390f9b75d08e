"""network.pt: a network as a specification in plain values and a state_dict, read without unpickling code.

Masked weights are stored without their zeros and quantized ones with their bits only
(`experiment.run.disk.packed_tensors`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, InstanceOf, ValidationError
from torch import Tensor, nn

from experiment.errors import CompressionError, ConfigError, Damaged, StoreError, shortened
from experiment.files import whole_file
from experiment.inputs import Inputs
from experiment.layers.build import build
from experiment.layers.masks import bake_masks, plain_name
from experiment.layers.plan import Name, Plan, first_fault
from experiment.layers.prepare_network import with_parameters
from experiment.layers.pretrained_files import watch_saving
from experiment.layers.quantized_weights import named_dtypes
from experiment.networks import NETWORKS
from experiment.networks.make_network import make_network
from experiment.registry import InputForm, is_import_path
from experiment.run.disk.load_weights import load_state, other_prefix, read_plain, require_shapes
from experiment.run.disk.packed_tensors import (
    MaskedWeight,
    QuantizedWeight,
    decode_state,
    pack_weights,
    split_codes,
    unpack,
)
from experiment.run.disk.specification import Specification, checked_specification, specification_of

MAX_REASON = 1000  # characters of torch's list of differences
PASS_THE_ORIGINAL = (
    "Pass the network that was given to `compress`, of the same sizes: for a network that was compressed twice, the "
    "first result."
)
_MISFITS = (CompressionError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, IndexError, OverflowError)


def save_weights(
    path: Path, network: nn.Module, plan: Plan, architecture: Mapping[str, Any] | None, **about: str | float | None
) -> int:
    """Write a network; returns the size of the file in bytes.

    Args:
        architecture: how to construct the original network (name, settings, output_size, input_shape); None if only
            the user's own code can.
        about: plain facts to store beside it (method, keep, ...), for people.
    """
    specification = specification_of(plan, architecture, about)
    dtypes, state = named_dtypes(network), network.state_dict()
    whole, masked, rounded = pack_weights(state, {n: dtypes[plain_name(n)] for n in state if plain_name(n) in dtypes})
    weights = PackedWeights.model_construct(state_dict=whole, masked=masked, rounded=rounded)
    with whole_file(path) as partial, partial.open("wb") as stream:  # by its name torch would name the entries
        torch.save({"specification": specification, **weights.model_dump(exclude_none=True)}, stream)
        return stream.tell()


class PackedWeights(BaseModel):
    """The weights of network.pt as they are stored; they take no more memory than the file has bytes."""

    state_dict: dict[Name, InstanceOf[Tensor]]
    masked: dict[Name, MaskedWeight]
    rounded: dict[Name, QuantizedWeight]

    def shapes(self) -> dict[str, torch.Size]:
        """Name -> shape in the state_dict that `unpacked` returns."""
        shapes = {name: tensor.shape for name, tensor in self.state_dict.items()}
        shapes |= {name: torch.Size(how.shape) for name, how in self.rounded.items() if how.shape is not None}
        for name, packed in self.masked.items():
            shapes[name] = shapes[packed.mask] = torch.Size(packed.shape)
        return shapes

    def unpacked(self) -> dict[str, Tensor]:
        """The state_dict, including all zeros of masked weights. Check `shapes` first: it may need far more memory.

        Raises: ValueError, KeyError: the stored parts are inconsistent.
        """
        return decode_state(unpack(*split_codes(self.state_dict, self.masked, self.rounded)), self.rounded)


def read_weights(path: Path) -> tuple[Specification, PackedWeights]:
    """The specification and the weights in a file.

    Raises: StoreError: the file is missing, damaged, foreign, or of another format version.
    """
    content = read_plain(path)
    if not isinstance(content, dict) or not {"specification", "state_dict"} <= content.keys():
        raise StoreError(f"{path}: was not written by this program: it contains no specification and state_dict.")
    weights = {key: value for key, value in content.items() if key != "specification"}
    try:
        return checked_specification(content["specification"], path), PackedWeights.model_validate(weights)
    except ValidationError as error:
        raise Damaged(f"{path}: is damaged: {first_fault(error)}.") from error


def original_of(
    specification: Specification, path: Path, own_names: Callable[[], Collection[str]]
) -> tuple[nn.Module, InputForm]:
    """The original network from which a file's network was made, and the shape of one input.

    A registered network is constructed on the `meta` device: sizes that a file claims cost no memory before they are
    compared with its weights. A network of the user's own code has arbitrary weights.

    Args:
        own_names: returns the networks that the parameter file names. Only code that is named there is imported.
    Raises: StoreError: the file does not say how to construct it, or names code that the parameter file does not.
    """
    made = specification.architecture
    if made is None:
        raise StoreError(
            f"{path}: does not say how to construct the original network. Pass it: load_network(path, network=net)."
        )
    if is_import_path(made.name) and made.name not in own_names():
        raise StoreError(
            f"{path}: its network is made by code, '{shortened(made.name)}', which no parameter file beside it names. "
            "For safety it is not imported. Pass the original network: load_network(path, network=net)."
        )
    shape = made.form
    try:
        with torch.device("meta") if made.name in NETWORKS else nullcontext():
            return untrained_network(made.name, made.settings, shape, made.output_size), shape
    except ConfigError as error:
        raise StoreError(f"{path}: its description of the original network is wrong: {error}") from error


def untrained_network(
    name: str, settings: Mapping[str, Any], input_shape: InputForm, output_size: int, example: Inputs | None = None
) -> nn.Module:
    """A network without the published weights that the settings of a registered one may request."""
    settings = {key: value for key, value in settings.items() if key != "pretrained" or name not in NETWORKS}
    return make_network(name, settings, input_shape, output_size, example=example, outputs=None)


def rebuild(
    original: nn.Module, specification: Specification, packed: PackedWeights, path: Path, *, baked: bool = False
) -> nn.Module:
    """The compressed network in eval mode, on the device of the original (on the CPU if that is on `meta`).

    Args:
        baked: whether the weights are those of the deployed form, without masks and rounding.
    Raises: StoreError: the plan or the weights do not fit the original network. CompressionError: the original cannot
        be compressed.
    """
    original = with_parameters(original).network
    try:
        network = build(original, Plan.from_data(specification.plan, original))
        network = bake_masks(network) if baked else network
    except _MISFITS as error:
        prefix = other_prefix(original.state_dict(), packed.shapes())
        why = shortened(str(error).strip(), MAX_REASON) if prefix is None else f"{prefix[0]}."
        raise StoreError(
            f"{path}: does not fit this network, which is not the one that was compressed: {why} {PASS_THE_ORIGINAL}"
        ) from error
    try:
        load_packed(network, packed, path)
    except Damaged:
        raise
    except StoreError as error:
        raise StoreError(f"{error} {PASS_THE_ORIGINAL}") from error
    if empty := [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]:
        raise StoreError(
            f"{path}: does not hold '{empty[0]}', which has no values on the device meta. Make the original network on "
            "the CPU or a GPU; its weights do not matter."
        )
    return watch_saving(network.eval())


def load_packed(network: nn.Module, packed: PackedWeights, path: Path) -> None:
    """Load the weights of a file into a network, in place; a network on `meta` takes the tensors themselves.

    Raises: StoreError: they belong to another network, or cannot be weights.
    """
    try:
        require_shapes(network, packed.shapes(), path)  # before the zeros of masked weights take memory
        load_state(network, packed.unpacked(), path)
    except _MISFITS as error:
        raise Damaged(f"{path}: is damaged: {str(error).strip()}") from error
