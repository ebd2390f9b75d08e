"""Random streams: the seed is a hash of its parts, and nothing outside is touched."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment.random_streams import Part, generator, seed_of, seeded


def test_seed_is_the_hash_of_its_parts() -> None:
    digest = hashlib.sha256(b'["order","CIFAR10",0,3,0.5,null]').hexdigest()
    assert seed_of("order", "CIFAR10", 0, 3, 0.5, None) == int(digest[:16], 16) // 2


def test_seeds_are_valid_and_differ() -> None:
    seeds = {seed_of("epoch", net, epoch) for net in range(10) for epoch in range(100)}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**63


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("b", "a")),
        (("ab", "c"), ("a", "bc")),
        (("a,b",), ("a", "b")),
        ((1,), ("1",)),
        ((None,), ("null",)),
        ((), ("",)),
        (("a",), ("a", None)),
        (("ä",), ("a",)),
    ],
)
def test_other_parts_give_another_seed(one: tuple[Part, ...], other: tuple[Part, ...]) -> None:
    assert seed_of(*one) != seed_of(*other)


def test_seed_is_the_same_in_another_process() -> None:
    code = "from experiment.random_streams import seed_of; print(seed_of('split', 7))"
    root = Path(__file__).resolve().parents[1]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert int(printed) == seed_of("split", 7)


def test_generator() -> None:
    first, again, other = (torch.rand(8, generator=generator("x", i)) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert generator("x", 0).initial_seed() == seed_of("x", 0)


def test_generator_leaves_the_default_one_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=generator("x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded() -> None:
    before = torch.get_rng_state()
    with seeded("init", 0):
        first = torch.rand(4)
    with seeded("init", 0):
        again = torch.rand(4)
    with seeded("init", 1):
        other = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, torch.rand(4, generator=generator("init", 0)))


def test_seeded_is_undone_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded("init"):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_inside_seeded() -> None:
    with seeded("outer"):
        whole = torch.rand(4)
    with seeded("outer"):
        half = torch.rand(2)
        with seeded("inner"):
            torch.rand(9)
        rest = torch.rand(2)
    assert torch.equal(torch.cat((half, rest)), whole)


def test_what_came_before_does_not_matter() -> None:
    torch.rand(5)
    with seeded("init"):
        first = torch.nn.Linear(3, 2).weight
    torch.rand(7)
    with seeded("init"):
        second = torch.nn.Linear(3, 2).weight
    assert torch.equal(first, second)
