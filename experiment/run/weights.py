"""network.pt: a specification in plain values and a state_dict, written whole and read without unpickling code.

Masked weights stand beside the state_dict, without their zeros, and rounded ones have no more bits than they need
(`experiment.run.packing`).
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import OtherVersion, StoreError
from experiment.files import is_whole_archive, write_whole
from experiment.layers.build import build
from experiment.layers.masks import plain_name
from experiment.layers.plan import Plan
from experiment.layers.quantized import named_dtypes
from experiment.networks import NETWORKS
from experiment.networks.make import make_network
from experiment.registry import InputShape, is_import_path
from experiment.run.packing import decode_state, encode_state, pack, unpack

FORMAT = 3  # of network.pt
FORMATS = (
    1,
    2,
    FORMAT,
)  # that are read; 1 has masks and masked weights in the state_dict as they are, 2 all in 32 bits


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


def read_plain(path: Path) -> Any:
    """What a file of tensors and plain values holds, on the CPU.

    Raises: StoreError: the file is absent or damaged, or holds anything else. Nothing in it is executed.
    """
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file.")
    if zipfile.is_zipfile(path) and not is_whole_archive(path):  # torch does not look at checksums
        raise StoreError(f"{path}: damaged: its checksums are not those of what is in it.")
    try:
        with warnings.catch_warnings():  # torch warns of pickles that it then refuses, or that are refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(
            f"{path}: not a file of weights, damaged, or holding more than plain data ({reason})."
        ) from error


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The specification and the state_dict of a file.

    Raises: StoreError: the file is absent, damaged, foreign, or of another format version. Nothing in it is executed.
    """
    content = read_plain(path)
    if not isinstance(content, dict) or not {"specification", "state_dict"} <= content.keys():
        raise StoreError(f"{path}: not written by this program: no specification and state_dict in it.")
    specification = content["specification"]
    if not isinstance(specification, dict) or specification.get("format") not in FORMATS:
        version = specification.get("format") if isinstance(specification, dict) else "?"
        raise OtherVersion(
            f"{path}: format version {version}, this program reads {', '.join(map(str, FORMATS[:-1]))} and {FORMAT}. "
            "Load it with the version that wrote it."
        )
    try:
        state = unpack(content["state_dict"], content.get("masked", {}))
        return specification, decode_state(state, content.get("rounded", {}))
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {str(error).strip()}") from error


def original_of(
    specification: Mapping[str, Any], path: Path, own_names: Callable[[], Collection[str]]
) -> tuple[nn.Module, InputShape]:
    """The original network that a file says its own was made from, with other weights, and the shape of one input.

    Args:
        own_names: the names in the parameter file: code that is imported is named there, and not by the file alone.
    Raises: StoreError: the file says nothing of it, or names code that nobody else does.
    """
    made = specification.get("architecture")
    if made is None:
        raise StoreError(f"{path}: says nothing of the original network. Pass it: load_network(path, network=net).")
    try:
        name, settings, output_size = made["name"], dict(made["settings"]), made["output_size"]
        sides = tuple(made["input_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged: what it says of the original network is not whole.") from error
    if not isinstance(name, str) or any(type(n) is not int or n < 1 for n in (*sides, output_size)):
        raise StoreError(f"{path}: damaged: what it says of the original network is none.")
    if is_import_path(name) and name not in own_names():
        raise StoreError(
            f"{path}: its network is made by code, '{name}', which no parameter file beside it names. Nothing is "
            "imported because a file says so. Pass the original network: load_network(path, network=net)."
        )
    shape = InputShape(sides, tokens=made.get("tokens") is True)
    return untrained_network(name, settings, shape, output_size), shape


def untrained_network(
    name: str, settings: Mapping[str, Any], input_shape: tuple[int, ...], output_size: int
) -> nn.Module:
    """A network without the published weights that the settings of a registered one may ask for."""
    settings = {key: value for key, value in settings.items() if key != "pretrained" or name not in NETWORKS}
    return make_network(name, settings, input_shape, output_size)


def rebuild(
    original: nn.Module, specification: Mapping[str, Any], state: Mapping[str, Tensor], path: Path
) -> nn.Module:
    """The compressed network in eval mode, from the original architecture and what `read_weights` gave.

    Raises: StoreError: the plan or the weights do not fit that architecture.
    """
    try:
        network = build(original, Plan.from_data(specification["plan"], original))
        network.load_state_dict(dict(state))
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: does not fit this network: {str(error).strip()}") from error
    return network.eval()
