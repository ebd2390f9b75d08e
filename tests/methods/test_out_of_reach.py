"""What no method touches is named, with its share, in a warning, in the table and in errors; all other weights are."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress, load_network, save_network
from experiment.errors import InfeasibleBudget
from experiment.layers.masks import named_masks
from experiment.layers.quantized_weights import named_dtypes, round_to
from experiment.measure import count


class Many(nn.Module):
    """Attention, a bare matrix, tied layers, a head that is never called, and layers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)  # 64 * 4 + 32 = 288
        self.attn.forward = self.attn.forward  # replaced, as by a faster kernel: plain layers cannot take its place
        self.position = nn.Parameter(torch.randn(1, 6, 8))  # 48
        self.tied, self.again = nn.Linear(8, 8), nn.Linear(8, 8)  # 64 + 8 + 8
        self.again.weight = self.tied.weight
        self.aux = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))  # 56
        self.signal = nn.Conv1d(6, 6, 3, padding=1)  # 114
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        x = self.norm(x + self.attn(x, x, x)[0])
        x = self.depthwise(self.signal(self.again(self.tied(x))))
        return self.head(x.mean(1))


def many() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Many().eval(), torch.randn(2, 6, 8)


LOWRANK = {"attn": 288, "position": 48, "tied": 72, "again": 8, "aux": 56}
REST = {"WT": {"aux": 56}, "Prune": {"aux": 56}, "SiPP": LOWRANK, "ALDS": LOWRANK}


@pytest.mark.parametrize("method", REST)
def test_the_rest_is_named_once(method: str, caplog: pytest.LogCaptureFixture) -> None:
    (network, x), expected = many(), REST[method]
    with caplog.at_level(logging.WARNING, "experiment"):
        result = compress(network, method, keep=0.97, example=x, data=x)
    rows = result.layers.set_index("layer")
    unreachable = rows[rows["kind"] == "unreachable"]
    assert set(unreachable.index) == set(expected)
    found = {name: unreachable["parameters"][name] for name in expected if name != "again"}
    assert found == {name: n for name, n in expected.items() if name != "again"}
    assert unreachable["rank" if method == "ALDS" else "kept"].isna().all()
    total = sum(p.numel() for p in network.parameters())
    rest = sum(expected.values())
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.startswith(f"{method}: {rest} of {total} parameters ({rest / total:.0%}) cannot be compressed: a")
    assert "aux (Sequential, not called for the example)" in text
    assert ("tied (Linear, shares parameters with again)" in text) == (len(expected) > 1)
    assert text.endswith(f"Of the rest, keep 0.97 leaves {(0.97 * total - rest) / (total - rest):.1%}.")


def test_quantize_reaches_all(caplog: pytest.LogCaptureFixture) -> None:
    network, x = many()
    with caplog.at_level(logging.WARNING, "experiment"):
        compress(network, "Quantize", dtype="int8", example=x)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_matrix_is_rounded(dtype: str, tmp_path: Any) -> None:
    torch.manual_seed(3)
    network, x = Language().eval(), torch.randint(0, 12, (8, 5))
    result = compress(network, "Quantize", dtype=dtype, example=x)
    rounded = {name for name in named_dtypes(result.network) if "bias" not in name}
    assert rounded == {
        "embedding.weight", "head.weight", "position", "own.weight",
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0",
    }  # fmt: skip
    reference = copy.deepcopy(network)
    with torch.no_grad():
        for name in rounded:
            reference.get_parameter(name).copy_(round_to(network.get_parameter(name), dtype))
        if dtype == "float16":
            reference.own.bias.copy_(round_to(network.own.bias, dtype))
    assert torch.equal(result.network(x)["logits"], reference(x)["logits"])
    save_network(result, tmp_path / "n.pt")
    assert torch.equal(load_network(tmp_path / "n.pt", network=network)(x)["logits"], reference(x)["logits"])
    result.network.train()(x)["logits"].sum().backward()
    assert result.network.lstm.parametrizations.weight_hh_l0.original.grad.any()
    assert torch.equal(copy.deepcopy(result.network).eval()(x)["logits"], reference(x)["logits"])


@pytest.mark.parametrize("method", ["Fake", "FT", "SVD", "WT"])
def test_nothing_is_said_where_all_is_within_reach(method: str, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4)).eval()
    with caplog.at_level(logging.WARNING, "experiment"):
        result = compress(network, method, keep=1.0 if method == "Fake" else 0.7, example=torch.randn(1, 3, 6, 6))
    assert not caplog.records
    assert set(result.layers["kind"]) == {"conv", "linear"}


def test_heads_that_are_not_called(caplog: pytest.LogCaptureFixture) -> None:
    """The keep ratio of all is said as that of what is used."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.aux, self.fc = nn.Linear(8, 20), nn.ModuleList([nn.Linear(19, 21)]), nn.Linear(20, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.stem(x).relu())
            return y

    with caplog.at_level(logging.WARNING, "experiment"):
        compress(Headed().eval(), "FT", keep=0.7, example=torch.randn(1, 8))
    assert "420 of 684 parameters (61%) cannot be compressed: aux (ModuleList, not called" in caplog.text
    assert "keep 0.7 leaves 22.3%" in caplog.text


def test_the_reason_comes_before_the_numbers() -> None:
    network, x = many()
    with pytest.raises(
        InfeasibleBudget, match=r"^\d+ of \d+ parameters .*attn .* A budget of \d+ .*keep ratio"
    ) as caught:
        compress(network, "ALDS", keep=0.1, example=x)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    lstm = nn.LSTM(4, 4)
    with pytest.raises(InfeasibleBudget, match=r"^There is nothing to compress: .*lstm \(LSTM, not a linear layer"):
        compress(Recurrent(lstm), "SVD", keep=0.5, example=torch.randn(2, 3, 4))


class Recurrent(nn.Module):
    """A recurrent network with a convolution that has multiply-adds, but nothing that methods could take away."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm, self.shared = lstm, nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.shared(self.lstm(x)[0]))
        return y


class Language(nn.Module):
    """An embedding tied to the head, positions, a recurrent layer, a layer with a forward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(12, 8), nn.LSTM(8, 6, proj_size=4, batch_first=True)
        self.position, self.scale = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.ones(1, 1, 4))
        self.table = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
        self.own, self.head = Own(4, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.lstm(self.embedding(tokens) + self.position)[0] * self.scale + self.table.sum()
        return {"logits": self.head(self.own(x)).mean(1)}


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.abs(), self.bias)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("method", ["WT", "WT (layer)", "Random", "SNIP", "Prune", "TorchPrune", "l2"])
def test_every_matrix_is_masked(method: str, tmp_path: Any) -> None:
    """Under a budget of FLOPs only where a mask saves some."""
    torch.manual_seed(3)
    network, x = Language().eval(), torch.randint(0, 12, (8, 5))
    recurrent = {"lstm.weight_ih_l0": 24 * 8, "lstm.weight_hh_l0": 24 * 4, "lstm.weight_hr_l0": 4 * 6}
    sizes = {"embedding.weight": 96, "position": 40, **recurrent, "own.weight": 32}
    whole, data = count(network, x), (x, torch.arange(8) % 12)
    assert {name: whole.read[name] for name in recurrent} == {name: 5 * n for name, n in recurrent.items()}
    result = compress(network, method, keep=0.5, example=x, data=data)
    masks = named_masks(result.network)
    assert {name for name, mask in masks.items() if not mask.all()} == {*sizes, "head.weight"}
    rows = result.layers.set_index("layer")
    total = sum(p.numel() for p in network.parameters())
    assert rows.loc["lstm.weight_hh_l0", "parameters"] == int(masks["lstm.weight_hh_l0"].sum())
    assert rows.loc["head", "kept"] == pytest.approx(int(masks["head.weight"].sum()) / 96)
    assert rows.loc["table", "kind"] == "unreachable"
    assert 0.4 * total < result.parameters == count(result.network, x).parameters <= 0.5 * total
    save_network(result, tmp_path / "n.pt")
    torch.testing.assert_close(load_network(tmp_path / "n.pt", network=network)(x), result.network(x))
    fewer = compress(network, method, keep=0.5, example=x, data=data, budget="flops")
    assert "position" not in named_masks(fewer.network)
    assert 0.3 * whole.flops < count(fewer.network, x).flops_unmasked <= 0.5 * whole.flops


CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=4), (8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8, stride=2), (8, 7, 6)),
    "Conv1d": (lambda: nn.Conv1d(8, 6, 3), (8, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 2), groups=2), (2, 3, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (8, 4, 5)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(8, 6, 3, groups=2), (8, 5)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_every_kind_are_masked(kind: str, tmp_path: Any) -> None:
    make, shape = CONVOLUTIONS[kind]
    torch.manual_seed(1)
    x = torch.randn(8, *shape)
    body = make()
    network = nn.Sequential(body, nn.ReLU(), nn.Flatten(), nn.Linear(body(x).flatten(1).shape[1], 3)).eval()
    data, whole = (x, torch.arange(8) % 3), count(network, x)
    cases = [("WT", "parameters"), ("WT (layer)", "flops"), ("SNIP", "flops"), ("l1", "parameters"), ("l1", "flops")]
    for method, budget in cases:
        result = compress(network, method, keep=0.5, example=x, data=data, budget=budget)  # planned = counted inside
        masks = named_masks(result.network)
        assert set(masks) == {"0.weight", "3.weight"}, method
        assert not masks["0.weight"].all()
        counted = count(result.network, x)
        used, limit = (
            (counted.parameters, whole.parameters) if budget == "parameters" else (counted.flops_unmasked, whole.flops)
        )
        assert 0.4 * limit < used <= 0.5 * limit, method
        assert result.layers["kept"].notna().all()
        if method == "WT":
            weights = torch.cat([network[i].weight.detach().abs().flatten() for i in (0, 3)])
            kept = torch.cat([masks[f"{i}.weight"].flatten() for i in (0, 3)])
            assert weights[kept].min() >= weights[~kept].max()
    save_network(result, tmp_path / "n.pt")  # with the factors of sampled weights
    torch.testing.assert_close(load_network(tmp_path / "n.pt", network=network)(x), result.network(x))


@pytest.mark.filterwarnings("ignore:Compose")  # whole groups go: less is left than was asked for
def test_masks_of_grouped_layers_that_lose_groups() -> None:
    """Filters first, then weights of what is left, depthwise layers included, and once more."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    for keep in (0.5, 0.3):
        result = compress(
            network,
            "Compose",
            keep=keep,
            example=x,
            schemes=["FT", {"name": "Prune", "settings": {"density": 0.2, "layers": {"1": {"density": 0.05}}}}],
        )
        masks = named_masks(result.network)
        assert {"1.weight", "5.weight"} <= set(masks)
        assert all(mask.shape == result.network.get_submodule(n[:-7]).weight.shape for n, mask in masks.items())
        again = compress(result.network, "WT", keep=0.9, example=x)
        assert again.network(x).shape == (2, 4)
