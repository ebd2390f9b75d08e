"""Rounded weights in files: as few bits as they have, masked or not, and the same outputs when they come back."""

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from experiment.errors import StoreError
from experiment.layers.build import build
from experiment.layers.plan import Factors, Plan
from experiment.random_streams import generator, seeded
from experiment.run.disk.network_file import read_weights, rebuild, save_weights
from experiment.run.disk.packed_tensors import QuantizedWeight, join_codes, split_codes

X = torch.randn(4, 3, 3, 3, generator=generator("x"))
SIZES = {
    "float16": 2, "bfloat16": 2, "int8": 1, "int4": 0.5, "int8/5": 1, "int4/4": 0.5, "codebook2": 1 / 8,
    "codebook4": 1 / 4, "codebook16": 0.5, "codebook256": 1,
}  # fmt: skip
DTYPES = tuple(SIZES)


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
        names = [f"{n}.parametrizations.weight.original" for n in ("0", "3")]
        codes = [content["masked"][n]["values"] if kind == "masked" else content["state_dict"][n] for n in names]
        shapes = [(37, 27), (311, 37)] if kind == "whole" else [(1, int(mask.sum())) for mask in plan.masks.values()]
        stored = sum(rows * math.ceil(columns * SIZES[dtype]) for rows, columns in shapes)
        assert sum(c.nbytes for c in codes) == stored
        scales = sum(how["scales"].nbytes for how in content["rounded"].values() if "scales" in how)
        assert scales == 4 * sum(scales_of(rows, columns, dtype) for rows, columns in [(37, 27), (311, 37)])
        saved = 4 * elements - stored - scales - (elements // 8 if kind == "masked" else 0)
        assert size < dense - saved + 5000  # names, and what an archive spends on every tensor


def scales_of(rows: int, columns: int, dtype: str) -> int:
    kind, _, group = dtype.partition("/")
    if "codebook" in kind:
        return int(kind.removeprefix("codebook"))
    return 0 if "float" in kind else rows * -(-columns // int(group or columns))


def test_two_codes_share_a_byte_and_come_back() -> None:
    codes = torch.randint(-8, 8, (5, 7), generator=generator("nibbles"), dtype=torch.int8)
    how = {"w": QuantizedWeight(dtype="int4", scales=torch.ones(5))}
    whole, _, told = join_codes({"w": codes}, {}, how)
    even = [[c & 15 for c in [*row, 0]] for row in codes.tolist()]
    assert whole["w"].tolist() == [[low + 16 * high for low, high in zip(r[::2], r[1::2], strict=True)] for r in even]
    assert torch.equal(split_codes(whole, {}, told)[0]["w"], codes)


@pytest.mark.parametrize(("dtype", "bits"), [("codebook2", 1), ("codebook4", 2), ("codebook16", 4)])
def test_codes_of_codebooks_fill_bytes_from_the_lowest_bit(dtype: str, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 11), generator=generator("codes"), dtype=torch.uint8)
    how = {"w": QuantizedWeight(dtype=dtype, scales=torch.ones(2**bits))}
    whole, _, told = join_codes({"w": codes}, {}, how)
    numbers = [sum(code << i * bits for i, code in enumerate(row)) for row in codes.tolist()]
    assert [list(row) for row in whole["w"].numpy()] == [
        list(n.to_bytes(-(-11 * bits // 8), "little")) for n in numbers
    ]
    assert torch.equal(split_codes(whole, {}, told)[0]["w"], codes)


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
    ("dtype", "part", "value"),
    [
        ("int8", "dtype", "float16"),
        ("int8", "dtype", "int4"),
        ("int8", "dtype", "int8/5"),
        ("int8", "scales", torch.ones(3)),
        ("int8", "scales", None),
        ("int4/4", "dtype", "int4/5"),
        ("int4/4", "dtype", "int8/4"),
        ("int4/4", "scales", torch.ones(311)),
        ("int4/4", "shape", None),
        ("int4/4", "shape", [311, 39]),
        ("codebook4", "dtype", "codebook2"),
        ("codebook4", "dtype", "int4"),
        ("codebook16", "dtype", "int4"),
        ("codebook256", "dtype", "int8"),
        ("codebook4", "scales", torch.ones(3)),
        ("codebook4", "scales", None),
        ("codebook4", "shape", [311, 45]),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, dtype: str, part: str, value: object) -> None:
    plan = plans(dtype)["whole"]
    save_weights(tmp_path / "network.pt", build(network(), plan), plan, None)
    content = torch.load(tmp_path / "network.pt", weights_only=True)
    broken = copy.deepcopy(content)
    broken["rounded"]["3.parametrizations.weight.original"][part] = value
    buffer = io.BytesIO()
    torch.save(broken, buffer)
    (tmp_path / "network.pt").write_bytes(buffer.getvalue())
    with pytest.raises(StoreError, match=r"network\.pt: .*3\.parametrizations\.weight\.original"):
        rebuild(network(), *read_weights(tmp_path / "network.pt"), tmp_path / "network.pt")
