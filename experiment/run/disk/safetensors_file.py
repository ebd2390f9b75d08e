"""Exported safetensors files: read, rebuilt and run in torch, without unpickling anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiment.deploy.runtimes import Arrays, Run
from experiment.deploy.writers import SPECIFICATION, TIED
from experiment.errors import Damaged, StoreError
from experiment.inputs import Inputs, call_network, output_tensors
from experiment.registry import InputForm, InputShape
from experiment.run.disk.network_file import PackedWeights, original_of, rebuild
from experiment.run.disk.specification import Specification, checked_specification


def read_safetensors(path: Path) -> tuple[Specification, PackedWeights]:
    """The specification and the weights in a file, those of the deployed form.

    Raises: StoreError: the file is missing, damaged or foreign, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise StoreError(f"{path}: needs safetensors: python -m pip install safetensors.") from error
    if not path.is_file():
        raise StoreError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        specification, tied = (json.loads(metadata.get(key, "null")) for key in (SPECIFICATION, TIED))
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"{path}: is damaged: {error}") from error
    if specification is None:
        raise StoreError(f"{path}: does not say how to rebuild the network. Load its weights with safetensors.")
    if not isinstance(tied, dict) or not all(isinstance(n, str) and n in state for n in tied.values()):
        raise Damaged(f"{path}: is damaged: it names no weights that share a tensor.")
    state |= {name: state[first] for name, first in tied.items()}
    packed = PackedWeights.model_construct(state_dict=state, masked={}, rounded={})
    return checked_specification(specification, path), packed


def rebuilt(path: Path, network: nn.Module | None) -> nn.Module:
    """The deployed network in a file.

    Args:
        network: the original network; None to construct it as the file says, if it is a registered one.
    """
    specification, packed = read_safetensors(path)
    network = original_of(specification, path, tuple)[0] if network is None else network
    return rebuild(network, specification, packed, path, baked=True)


def run(path: Path, threads: int, own_names: Sequence[str]) -> Run:
    """The rebuilt network in torch, for a process of its own."""
    torch.set_num_threads(threads)
    specification, packed = read_safetensors(path)
    original, form = original_of(specification, path, lambda: own_names)
    network = rebuild(original, specification, packed, path, baked=True)

    def call(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            output = call_network(network, _filled(form, map(torch.from_numpy, arrays)))
        return [tensor.numpy() for tensor in output_tensors(output)]

    return call


def _filled(form: InputForm, given: Iterator[Any]) -> Inputs:
    if isinstance(form, InputShape):
        return next(given)
    if isinstance(form, dict):
        return {key: _filled(part, given) for key, part in form.items()}
    return tuple(_filled(part, given) for part in form)
