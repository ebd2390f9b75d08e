"""Weights in safetensors files, whole or in shards, of which one tensor at a time is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import Damaged, StoreError, shortened
from experiment.layers.prepare_network import without_prefixes
from experiment.run.grid.weights_file import missing_shard, shard_names


class Shards(Mapping[str, Tensor]):
    """The tensors of a file or of shards by name, read anew whenever they are looked up.

    Args:
        path: a safetensors file, or the index of shards beside it.
        network: what they are for: tied weights, which files hold once, have all their names in it.
    Raises: StoreError: a file is missing or damaged, or safetensors is not installed.
    """

    def __init__(self, path: Path, network: nn.Module) -> None:
        held = dict[str, tuple[Path, str]]()
        for file in files_of(path):
            with _opened(file) as opened:
                held |= {name: (file, name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        self._places = {name: held[stored] for name, stored in without_prefixes({n: n for n in held}).items()}
        own, first = network.state_dict(keep_vars=True), dict[int, str]()
        for name in sorted(own, key=lambda name: name not in self._places):
            stored = first.setdefault(id(own[name]), name)
            if stored in self._places:
                self._places.setdefault(name, self._places[stored])

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        with _opened(file) as opened:  # each time, as the pages of an open file stay in memory
            tensor: Tensor = opened.get_tensor(stored)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor; none is read."""
        shapes = dict[str, torch.Size]()
        for file in dict.fromkeys(file for file, _ in self._places.values()):
            with _opened(file) as opened:
                inside = {name: stored for name, (place, stored) in self._places.items() if place == file}
                shapes |= {name: torch.Size(opened.get_slice(stored).get_shape()) for name, stored in inside.items()}
        return shapes


def files_of(path: Path) -> list[Path]:
    """A safetensors file, or the shards of an index.

    Raises: StoreError: the index is damaged, or a shard is missing.
    """
    if path.suffix != ".json":
        return [path]
    if text := missing_shard(path):
        raise StoreError(text)
    return [path.parent / name for name in shard_names(path)]


def _opened(file: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise StoreError(f"{file}: needs safetensors: python -m pip install safetensors.") from error
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{file}: is damaged: {shortened(str(error))}") from error
