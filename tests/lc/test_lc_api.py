"""The L-C optimizer in Python: `experiment.LC` on a network, datasets and compressions of one's own."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiment import LC, load_network, save_network
from experiment.errors import CompressionError, ConfigError, DataError, InfeasibleBudget, StoreError
from experiment.layers.masks import named_masks
from experiment.layers.quantized_weights import named_dtypes, round_to

Make = Callable[..., tuple[Tensor, Tensor]]
SHORT: dict[str, Any] = {"steps": 4, "iterations": 3, "iterations_first": 6, "mu_init": 0.05, "batch_size": 16}


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples that are augmented at random, by torch's own generator."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i] + 0.1 * torch.randn(6), int(self.y[i])


@pytest.fixture
def sets(make_pairs: Make) -> dict[str, Any]:
    return {"train": Noisy(*make_pairs(70)), "valid": make_pairs(40, "valid")}


def test_a_method(network: nn.Sequential, sets: dict[str, Any]) -> None:
    before = copy.deepcopy(network.state_dict())
    lc = LC(network, "WT", keep=0.4, **sets, **SHORT)
    small = lc.run()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert sum(int((p != 0).sum()) for p in small.parameters()) <= 0.4 * 208 + 48
    rows = lc.statistics
    assert list(rows["iterations"]) == [0, 6, 9, 12]
    assert rows["valid_loss"].notna().all()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(small(sets["valid"][0]), sets["valid"][1])
    assert float(loss) == pytest.approx(rows["valid_loss"].min(), rel=1e-5)


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_four_bits_in_groups(network: nn.Sequential, sets: dict[str, Any], rounding: str) -> None:
    """Every C-step rounds the factors: the best result is on the grid, with the loss that was measured."""
    bits = {"name": "Quantize", "settings": {"dtype": "int4", "group_size": 4, "rounding": rounding}}
    lc = LC(network, "Compose", keep=0.8, settings={"schemes": ["SVD", bits]}, **sets, **SHORT)
    small = lc.run()
    dtypes = named_dtypes(small)
    assert set(dtypes.values()) == {"int4/4"}
    assert {"0.encoder.weight", "0.decoder.weight"} <= dtypes.keys()
    for name in dtypes:
        weight = small.get_submodule(name.removesuffix(".weight")).weight
        assert torch.equal(round_to(weight, "int4/4"), weight)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(small(sets["valid"][0]), sets["valid"][1])
    assert float(loss) == pytest.approx(lc.statistics["valid_loss"].min(), rel=1e-5)


@pytest.mark.parametrize("first", ["SVD", "WT"])
def test_codebooks(network: nn.Sequential, sets: dict[str, Any], first: str) -> None:
    """Every C-step learns them again: the best result has as many values as they have, and zeros where it is masked."""
    bits = {"name": "Quantize", "settings": {"dtype": "codebook4"}}
    lc = LC(network, "Compose", keep=0.6, settings={"schemes": [first, bits]}, **sets, **SHORT)
    small = lc.run()
    dtypes, masks = named_dtypes(small), named_masks(small)
    assert set(dtypes.values()) == {"codebook4"}
    assert bool(masks) == (first == "WT")
    for name in dtypes:
        weight = small.get_submodule(name.removesuffix(".weight")).weight
        live = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert len(weight[live].unique()) <= 4
        assert not weight[~live].any()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(small(sets["valid"][0]), sets["valid"][1])
    assert float(loss) == pytest.approx(lc.statistics["valid_loss"].min(), rel=1e-5)


def test_settings_reach_the_method(network: nn.Sequential, sets: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fold_"):
        LC(network, "FT", keep=0.5, settings={"fold_": "mean"}, **sets, **SHORT)
    LC(network, "FT", keep=0.7, **sets, **SHORT).run()
    with pytest.raises(InfeasibleBudget):
        LC(network, "FT", keep=0.7, settings={"ignore": ["0"]}, **sets, **SHORT).run()


def test_functions_of_ones_own(network: nn.Sequential, sets: dict[str, Any]) -> None:
    """Weights in float16: what compress does to its copy stays out of the network, and decompress likewise."""

    def compress(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.data = parameter.data.half().float()
        return module

    def decompress(module: nn.Module) -> nn.Module:
        return module

    lc = LC(network, (compress, decompress), **sets, **SHORT)
    small = lc.run()
    assert all(torch.equal(p, p.half().float()) for p in small.parameters())
    assert 0 < lc.statistics["relative_distance"].max() < 1e-3


def test_the_same_call_gives_the_same(network: nn.Sequential, sets: dict[str, Any]) -> None:
    first, second, other = (LC(network, "SVD", keep=0.7, seed=s, **sets, **SHORT) for s in (0, 0, 2))
    torch.manual_seed(99)  # which nothing listens to
    a, b = first.run().state_dict(), second.run().state_dict()
    other.run()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert first.statistics.drop(columns="seconds").equals(second.statistics.drop(columns="seconds"))
    assert not first.statistics.drop(columns="seconds").equals(other.statistics.drop(columns="seconds"))


def test_it_continues_where_it_was_interrupted(network: nn.Sequential, sets: dict[str, Any], tmp_path: Path) -> None:
    """The training set fails in its second epoch, once."""
    whole = LC(network, "WT", keep=0.4, **sets, **SHORT)
    expected = whole.run().state_dict()
    asked = 0

    class Failing(Noisy):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            nonlocal asked
            asked += 1
            if asked == 150:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    failing = {"train": Failing(sets["train"].x, sets["train"].y), "valid": sets["valid"]}
    path = tmp_path / "lc.pt"
    with pytest.raises(KeyboardInterrupt):
        LC(network, "WT", keep=0.4, checkpoint=path, **failing, **SHORT).run()
    assert path.is_file()
    again = LC(network, "WT", keep=0.4, checkpoint=path, **failing, **SHORT)
    result = again.run().state_dict()
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert again.statistics.drop(columns="seconds").equals(whole.statistics.drop(columns="seconds"))


def rounded(module: nn.Module, bits: int) -> nn.Module:
    for parameter in module.parameters():
        parameter.data = (parameter.data * 2**bits).round() / 2**bits
    return module


def same(module: nn.Module) -> nn.Module:
    return module


def test_a_checkpoint_of_something_else_is_refused(
    network: nn.Sequential, sets: dict[str, Any], make_pairs: Make, tmp_path: Path
) -> None:
    """Other data, or functions of the same name that do something else: what was learnt for one is not the other's."""
    path = tmp_path / "lc.pt"

    def make(bits: int, **changed: Any) -> LC:
        arguments = {"checkpoint": path} | sets | SHORT | changed
        return LC(network, (functools.partial(rounded, bits=bits), same), **arguments)

    first = make(4)
    first.run()
    again = make(4)
    again.run()
    assert again.top1 == first.top1
    assert again.statistics.equals(first.statistics), "nothing was learnt again"
    x, y = sets["valid"]
    others = [make(2), make(4, valid=(x, (y + 1) % 3)), make(4, train=Noisy(*make_pairs(71))), make(4, steps=5)]
    for other in others:
        with pytest.raises(StoreError, match=r"lc\.pt: is the checkpoint of something else"):
            other.run()
    make(4).run()


def test_a_file_that_is_no_checkpoint_stays_as_it_is(
    network: nn.Sequential, sets: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(network.state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"mine\.pt: is the checkpoint of something else"):
        LC(network, "WT", keep=0.4, checkpoint=path, **sets, **SHORT).run()
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


class Keywords(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(torch.cat([left, right], dim=1))}


def test_inputs_by_keyword_are_learnt_and_compressed_as_the_one_tensor(
    network: nn.Sequential, make_pairs: Make, tmp_path: Path
) -> None:
    pairs = {"train": make_pairs(70), "valid": make_pairs(40, "valid")}
    cut = {name: {"left": x[:, :2], "right": x[:, 2:], "labels": y} for name, (x, y) in pairs.items()}
    whole = LC(network, "PCA", keep=0.7, **pairs, **SHORT)
    named = LC(Keywords(network), "PCA", keep=0.7, checkpoint=tmp_path / "lc.pt", **cut, **SHORT)
    small, x = whole.run(), pairs["valid"][0]
    assert torch.equal(named.run()(x[:, :2], x[:, 2:])["logits"], small(x))
    assert named.statistics["valid_loss"].tolist() == whole.statistics["valid_loss"].tolist()
    with pytest.raises(CompressionError, match=r"train: the network fails on its first sample, .*shape \(1, 6\).*: "):
        LC(Keywords(network), "WT", keep=0.4, **pairs, **SHORT)


def test_the_result_can_be_saved(network: nn.Sequential, sets: dict[str, Any], tmp_path: Path) -> None:
    lc = LC(network, "SVD", keep=0.7, **sets, **SHORT)
    with pytest.raises(CompressionError, match="no result yet"):
        _ = lc.result
    with pytest.raises(CompressionError, match="no metrics yet"):
        _ = lc.top1
    small = lc.run()
    assert lc.result.parameters == sum(p.numel() for p in small.parameters())
    save_network(lc.result, tmp_path / "small.pt")
    x = sets["valid"][0]
    with torch.no_grad():
        torch.testing.assert_close(load_network(tmp_path / "small.pt", network=network)(x), small(x))
    with pytest.raises(CompressionError, match="expected what compress returned"):
        save_network(small, tmp_path / "small.pt")  # type: ignore[arg-type]
    own = LC(network, (same, same), **sets, **SHORT)
    own.run()
    with pytest.raises(CompressionError, match="a pair of functions"):
        _ = own.result


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scheme": "WTT"}, "unknown method 'WTT'"),
        ({"keep": None}, "keep: is required"),
        ({"mu_init": 0}, "mu_init: must be greater than 0. Got 0"),
        ({"mu_init": 2, "mu_cap": 1}, "mu_cap: must be at least mu_init (2). Got 1"),
        ({"budget": "size"}, "budget.size"),
        ({"batch_size": 0}, "batch_size: must be at least 1. Got 0"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, fp16. Got 'fp8'"),
        ({"scheme": "Prune", "settings": {"density": 0.1}}, "keep: has no effect"),
        ({"steps": 0}, "steps: must be at least 1. Got 0"),
        ({"lr_end": 0.1, "lr_decay": 0.5}, "lr_decay: has no effect with lr_end"),
        ({"optimizer": "SDG"}, "optimizer"),
        ({"scheme": (lambda n: n, lambda n: n)}, "keep and settings: have no effect"),
    ],
)
def test_wrong_calls(network: nn.Sequential, sets: dict[str, Any], change: dict[str, Any], told: str) -> None:
    arguments = {"scheme": "WT", "keep": 0.4} | sets | SHORT | change
    with pytest.raises(ConfigError) as caught:
        LC(network, arguments.pop("scheme"), **arguments)
    assert told in str(caught.value)


def test_what_cannot_be_met(network: nn.Sequential, sets: dict[str, Any]) -> None:
    with pytest.raises(InfeasibleBudget):
        LC(network, "SVD", keep=0.01, **sets, **SHORT).run()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (3, "Got the int 3"),
        ((torch.zeros(5, 6), torch.zeros(4)), "as many targets as inputs .5.. Got 4"),
        (
            (torch.zeros(5, 6), torch.full((5,), 0.5)),
            "expected one class number as target. Got a torch.float32 tensor of value 0.5",
        ),
        ((torch.zeros(5, 6), torch.full((5,), 30)), "class numbers from 30 to 30; expected 0 to 3"),
        ([], "at least one sample"),
        ([torch.zeros(6)] * 3, "expected .input, target."),
        ([("cat.jpg", 1)] * 3, "expected a tensor or a PIL image as input"),
    ],
)
def test_data_that_are_none(network: nn.Sequential, make_pairs: Make, data: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        LC(network, "WT", keep=0.4, train=make_pairs(70), valid=data, **SHORT)
