"""Random streams: every seed is a hash of the purpose of its random numbers.

No global seed is changed, so results do not depend on the order of cells, on workers or on interruptions.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Part = str | int | float | None


def seed_of(*parts: Part) -> int:
    """A seed in [0, 2^63) that depends on `parts` only."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: Part, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the random numbers identified by `parts`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))


@contextmanager
def seeded(*parts: Part, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's default generators inside the block and restore them afterwards.

    For code that does not accept a generator: the initialisation of torch's layers, dropout, random transforms.
    """
    with seeded_by(seed_of(*parts), device):
        yield


@contextmanager
def seeded_by(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """`seeded` with a number."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def seeded_everywhere(*parts: Part) -> Iterator[None]:
    """Also seed the global generators of Python and numpy inside the block, for code of others."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed_of(*parts))
    np.random.seed(seed_of(*parts) % 2**32)
    try:
        with seeded(*parts):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
