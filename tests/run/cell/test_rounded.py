"""Rounded weights in files: as few bits as they have, masked or not, and the same outputs when they come back."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import StoreError
from experiment.layers.build import build
from experiment.layers.plan import Factors, Plan
from experiment.layers.quantized_weights import DTYPES
from experiment.random_streams import generator, seeded
from experiment.run.disk.network_file import read_weights, rebuild, save_weights

X = torch.randn(4, 3, 3, 3, generator=generator("x"))
SIZES = {"float16": 2, "bfloat16": 2, "int8": 1}


def network() -> nn.Sequential:
    with seeded("rounded"):
        return nn.Sequential(nn.Conv2d(3, 37, 3), nn.BatchNorm2d(37), nn.Flatten(), nn.Linear(37, 311)).eval()


def plans(dtype: str) -> dict[str, Plan]:
    quantized, stream = {"0": dtype, "3": dtype}, generator("rounded")
    masks = {
        "0.weight": torch.rand(37, 3, 3, 3, generator=stream) < 0.4,
        "3.weight": torch.rand(311, 37, generator=stream) < 0.1,
    }
    return {
        "whole": Plan(quantized=quantized),
        "masked": Plan(masks=masks, quantized=quantized),
        "factors": Plan(factors={"3": Factors(5, bias=True)}, quantized=quantized),
        "some": Plan(quantized={"3": dtype}),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["whole", "masked", "factors", "some"])
def test_a_file_gives_the_same_outputs(tmp_path: Path, dtype: str, kind: str) -> None:
    plan = plans(dtype)[kind]
    made = trained(plan)
    save_weights(tmp_path / "network.pt", made, plan, None)
    loaded = rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path)
    assert torch.equal(loaded(X), made(X))
    save_weights(tmp_path / "again.pt", loaded, plan, None)
    again = rebuild(network(), *read_weights(tmp_path / "again.pt"), tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert again.state_dict().keys() == made.state_dict().keys()


def trained(plan: Plan) -> nn.Module:
    """After one step, with momentum and weight decay, whose masters are off the grid."""
    made = build(network(), plan)
    for name, parameter in made.named_parameters():  # factors are empty before something fills them
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("rounded", name)))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    made.train()(X).square().mean().backward()
    optimizer.step()
    return made.eval()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_really_there(tmp_path: Path, dtype: str) -> None:
    elements = 37 * 27 + 311 * 37
    dense = save_weights(tmp_path / "network.pt", network(), Plan(), None)
    for kind, plan in plans(dtype).items():
        if kind not in ("whole", "masked"):
            continue
        size = save_weights(tmp_path / "network.pt", trained(plan), plan, None)
        content = torch.load(tmp_path / "network.pt", weights_only=True)
        codes = [content["state_dict"].get(f"{n}.parametrizations.weight.original") for n in ("0", "3")]
        if kind == "masked":
            parts = [content["masked"][f"{n}.parametrizations.weight.original"] for n in ("0", "3")]
            codes = [part["values"] for part in parts]
            assert [len(c) for c in codes] == [int(mask.sum()) for mask in plan.masks.values()]
        assert {c.element_size() for c in codes if isinstance(c, Tensor)} == {SIZES[dtype]}
        values = sum(len(c) if kind == "masked" else c.numel() for c in codes if isinstance(c, Tensor))
        saved = 4 * elements - SIZES[dtype] * values - (elements // 8 if kind == "masked" else 0)
        assert size < dense - saved + 5000  # names, and what an archive spends on every tensor


def test_what_stands_in_masked_places_has_no_say_in_the_scale(tmp_path: Path) -> None:
    plan = plans("int8")["masked"]
    made = trained(plan)
    before = made(X)
    with torch.no_grad():
        made[0].parametrizations.weight.original.masked_fill_(~plan.masks["0.weight"], 1e6)
    assert torch.equal(made(X), before)
    save_weights(tmp_path / "network.pt", made, plan, None)
    assert torch.equal(rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path)(X), before)


@pytest.mark.parametrize(
    ("part", "value"), [("dtype", "float16"), ("dtype", "int4"), ("scales", torch.ones(3)), ("scales", None)]
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, part: str, value: object) -> None:
    plan = plans("int8")["whole"]
    save_weights(tmp_path / "network.pt", build(network(), plan), plan, None)
    content = torch.load(tmp_path / "network.pt", weights_only=True)
    broken = copy.deepcopy(content)
    broken["rounded"]["3.parametrizations.weight.original"][part] = value
    buffer = io.BytesIO()
    torch.save(broken, buffer)
    (tmp_path / "network.pt").write_bytes(buffer.getvalue())
    with pytest.raises(StoreError, match=r"network\.pt: is damaged: 3\.parametrizations\.weight\.original"):
        rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path / "network.pt")
