"""Masked weights in files: smaller the fewer stay, and the same to the last bit when they come back."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiment.errors import StoreError
from experiment.layers.build import build, write_whole
from experiment.layers.plan import Plan
from experiment.random_streams import generator, seeded
from experiment.run.disk.network_file import read_weights, rebuild, save_weights
from experiment.run.disk.packed_tensors import MaskedWeight, pack, unpack


def network() -> nn.Sequential:
    with seeded("packing"):
        return nn.Sequential(nn.Conv2d(3, 37, 3), nn.BatchNorm2d(37), nn.Flatten(), nn.Linear(37, 311)).eval()


def plan_of(keep: float) -> Plan:
    """Conv, linear layer and one bias masked, in sizes that fill no whole byte."""
    parameters = dict(network().named_parameters())
    stream = generator("packing", keep)
    names = ("0.weight", "3.weight", "3.bias")
    return Plan(masks={name: torch.rand(parameters[name].shape, generator=stream) < keep for name in names})


def masked(keep: float) -> tuple[nn.Module, Plan]:
    plan = plan_of(keep)
    built = build(network(), plan).eval()
    write_whole(built, network(), plan)
    return built, plan


@pytest.mark.parametrize(
    ("keep", "dtype"), [(0.0, torch.float32), (0.001, torch.float64), (0.3, torch.bfloat16), (1.0, torch.float32)]
)
def test_what_is_packed_comes_back_to_the_last_bit(keep: float, dtype: torch.dtype) -> None:
    state = masked(keep)[0].to(dtype).state_dict()
    back = unpack(*pack(state))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
        assert back[name].is_contiguous()


def test_bits_are_those_of_numpy() -> None:
    state = masked(0.3)[0].state_dict()
    _, packed = pack(state)
    assert set(packed) == {
        f"{m}.parametrizations.{p}.original" for m, p in (("0", "weight"), ("3", "weight"), ("3", "bias"))
    }
    for name, parts in packed.items():
        mask = state[parts.mask].numpy().ravel()
        assert parts.bits is not None
        assert parts.bits.tolist() == np.packbits(mask).tolist()
        assert parts.values.tolist() == state[name].numpy().ravel()[mask].tolist()


@pytest.mark.parametrize(("gap", "dtype"), [(255, torch.uint8), (256, torch.int16), (32_768, torch.int32)])
def test_gaps_where_they_are_shorter_than_bits(gap: int, dtype: torch.dtype) -> None:
    mask = torch.zeros(3, 50_000, dtype=torch.bool)
    mask.view(-1)[[0, 7, 7 + gap]] = True
    weight = torch.rand(3, 50_000, generator=generator("gaps"))
    state = {"fc.parametrizations.weight.original": weight * mask, "fc.parametrizations.weight.0.mask": mask}
    _, packed = pack(state)
    parts = packed["fc.parametrizations.weight.original"]
    assert parts.gaps is not None
    assert parts.gaps.tolist() == [1, 7, gap]
    assert parts.gaps.dtype == dtype
    back = unpack(*pack(state))
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("gaps", [[0, 3], [1, 299_999], [-2, 5]])
def test_gaps_that_lead_out_of_the_weight_are_refused(gaps: list[int]) -> None:
    positions = torch.tensor(gaps, dtype=torch.int32)
    parts = MaskedWeight(mask="m", shape=[3, 100], gaps=positions, values=torch.ones(2))
    with pytest.raises(ValueError, match="its gaps exceed its 300 elements"):
        unpack({}, {"w": parts})


def test_an_exact_zero_that_is_not_masked_stays_alive() -> None:
    made, _ = masked(0.5)
    kept = made[3].parametrizations.weight[0].mask
    with torch.no_grad():
        made[3].parametrizations.weight.original.zero_()
    _, packed = pack(made.state_dict())
    assert len(packed["3.parametrizations.weight.original"].values) == int(kept.sum())
    assert torch.equal(unpack(*pack(made.state_dict()))["3.parametrizations.weight.0.mask"], kept)


def test_files_shrink_with_the_keep_ratio(tmp_path: Path) -> None:
    """Below the dense file and one bit a weight, by four bytes a masked weight."""
    dense = save_weights(tmp_path / "dense.pt", network(), Plan(), None)
    sizes, elements = [], 3 * 37 * 9 + 37 * 311 + 311
    for keep in (0.9, 0.5, 0.1):
        made, plan = masked(keep)
        size = save_weights(tmp_path / "network.pt", made, plan, None)
        gone = sum(int((~mask).sum()) for mask in plan.masks.values())
        headers = 3 * 600  # three more tensors in the archive, and their names
        assert size <= dense + elements / 8 - 4 * gone + headers
        sizes.append(size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < dense / 2


def test_saved_networks_compute_and_train_the_same(tmp_path: Path) -> None:
    made, plan = masked(0.4)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x = torch.randn(4, 3, 3, 3, generator=generator("x"))
    made.train()(x).square().mean().backward()
    optimizer.step()
    made.eval()
    save_weights(tmp_path / "network.pt", made, plan, None)
    loaded = rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path)
    assert torch.equal(loaded(x), made(x))
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())


def test_a_buffer_of_the_users_called_mask_is_left_alone() -> None:
    made = nn.Linear(3, 2)
    made.register_buffer("mask", torch.ones(2, 3, dtype=torch.bool))
    whole, packed = pack(made.state_dict())
    assert not packed
    assert set(whole) == {"weight", "bias", "mask"}


@pytest.mark.parametrize("part", ["bits", "values"])
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, part: str) -> None:
    made, plan = masked(0.4)
    save_weights(tmp_path / "network.pt", made, plan, None)
    content = torch.load(tmp_path / "network.pt", weights_only=True)
    broken = copy.deepcopy(content)
    entry = broken["masked"]["3.parametrizations.weight.original"]
    entry[part] = entry[part][:-1]
    torch.save(broken, tmp_path / "network.pt")
    with pytest.raises(StoreError, match=r"network\.pt: is damaged: 3\.parametrizations\.weight\.original"):
        rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path / "network.pt")
