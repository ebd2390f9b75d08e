"""int8 networks on the CPU: weights as integers in memory and in files, and outputs close to the float network's."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress, quantize_int8, serialized_bytes
from experiment.errors import CompressionError
from experiment.inputs import call_network, first
from experiment.layers.masks import named_masks
from experiment.layers.quantized_weights import encode
from experiment.networks.lenet import lenet5_small
from experiment.random_streams import generator, seeded

needs_torchao = pytest.mark.usefixtures("torchao")
OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torchao's own


@pytest.fixture(scope="module")
def torchao() -> Any:
    return pytest.importorskip("torchao", reason="needs the extra torchao")


def inputs(n: int) -> Tensor:
    return torch.randn(n, 1, 28, 28, generator=generator("test_deploy", n))


def lenet() -> nn.Module:
    with seeded("test_deploy"):
        return lenet5_small((1, 28, 28), 10).eval()


def with_batch_norm() -> nn.Module:
    with seeded("test_deploy"):
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Flatten(),
            nn.Linear(3456, 9),
        )
        network(inputs(32))
    return network.eval()


@needs_torchao
@OWN_WARNINGS
@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("method", [None, "WT", "ALDS", "FT"])
def test_outputs_are_close_and_files_small(mode: Any, method: str | None) -> None:
    network = lenet()
    if method is not None:
        network = compress(network, method, keep=0.5, example=inputs(1)).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masked = set(named_masks(network))
    int8 = quantize_int8(network, mode, calibration=inputs(40) if mode == "static" else None)
    x = inputs(33)
    with torch.inference_mode():
        expected, found = network(x), int8(x)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    assert not int8.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert set(named_masks(network)) == masked
    parameters = sum(p.numel() for p in lenet().parameters())
    if method is None:
        conv = 4 * (6 * 25 + 16 * 150) if mode == "dynamic" else 0
        assert parameters < serialized_bytes(int8) < parameters + conv + 16_000 < serialized_bytes(network) / 2.8


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(self.embedding(ids)).relu()
        return {"logits": self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))}


@needs_torchao
@OWN_WARNINGS
@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("keywords", [True, False])
def test_inputs_of_several_tensors(mode: Any, keywords: bool) -> None:
    with seeded("tokens"):
        network, ids = Tokens().eval(), torch.randint(30, (70, 7))
    mask = (torch.arange(7) < torch.arange(70)[:, None] % 4 + 3).long()
    inputs: Any = {"ids": ids, "mask": mask} if keywords else (ids, mask)
    int8 = quantize_int8(network, mode, calibration=inputs if mode == "static" else None)
    for n in (1, 9):
        with torch.inference_mode():
            expected = call_network(network, first(inputs, n))["logits"]
            error = (call_network(int8, first(inputs, n))["logits"] - expected).norm() / expected.norm()
        assert 0 < error < 0.05


@needs_torchao
@OWN_WARNINGS
def test_weights_are_really_integers() -> None:
    dynamic = quantize_int8(lenet(), "dynamic")
    kept = dynamic.get_submodule("fc1").weight.qdata  # type: ignore[union-attr]
    codes, _ = encode(lenet().get_submodule("fc1").weight.detach(), "int8")
    assert kept.dtype == torch.int8
    assert (kept.int() - codes.int()).abs().max() <= 1  # its scale spreads 255 levels, ours 254
    static = quantize_int8(lenet(), "static", calibration=inputs(40))
    sizes = sorted(t.numel() for t in static.state_dict().values() if t.dtype == torch.int8)
    assert sizes == sorted(p.numel() for n, p in lenet().named_parameters() if n.endswith("weight"))
    largest = max((t for t in static.state_dict().values() if t.is_floating_point()), key=Tensor.numel)
    assert largest.numel() == 120, "no float weight is left behind"


@needs_torchao
@OWN_WARNINGS
def test_static_folds_batch_norm_takes_any_batch_and_is_copied() -> None:
    network = with_batch_norm()
    int8 = quantize_int8(network, "static", calibration=inputs(70))
    assert not any("batch_norm" in str(node.target) for node in int8.graph.graph.nodes)  # type: ignore[union-attr]
    copied = copy.deepcopy(int8).train().eval()
    for n in (1, 2, 7):
        with torch.inference_mode():
            assert (int8(inputs(n)) - network(inputs(n))).norm() / network(inputs(n)).norm() < 0.05
            assert torch.equal(copied(inputs(n)), int8(inputs(n)))


@needs_torchao
@pytest.mark.parametrize(
    ("mode", "calibration", "match"),
    [
        ("static", None, "'static' needs calibration data"),
        ("static", torch.zeros(1, 1, 28, 28), "at least two inputs"),
        ("dynamic", torch.zeros(4, 1, 28, 28), "no effect in mode 'dynamic'"),
        ("static", [1, 2], "calibration: expected a tensor with a batch dimension, or a tuple .* Got a list"),
        ("static", torch.tensor(1.0), "calibration: expected a tensor with a batch dimension"),
        ("static", torch.full((4, 1, 28, 28), torch.nan), "calibration: expected numbers. Got NaN"),
        ("static", torch.full((4, 1, 28, 28), torch.inf), "inputs must be finite. Got infinity"),
        ("static", torch.zeros(4, 3, 28, 28), r"fails on its first 2 samples, a tensor of shape \(2, 3, 28, 28\)"),
        ("qat", None, "mode must be 'dynamic' or 'static'. Got 'qat'"),
    ],
)
def test_what_makes_no_sense_is_refused(mode: Any, calibration: Tensor | None, match: str) -> None:
    with pytest.raises(CompressionError, match=match):
        quantize_int8(lenet(), mode, calibration=calibration)


@needs_torchao
def test_a_result_in_place_of_its_network_is_told() -> None:
    result = compress(lenet(), "WT", keep=0.5, example=torch.zeros(1, 1, 28, 28))
    with pytest.raises(CompressionError, match="Got a CompressionResult. Pass its attribute `network`"):
        quantize_int8(result)  # type: ignore[arg-type]


@needs_torchao
def test_dynamic_needs_a_linear_layer() -> None:
    with pytest.raises(CompressionError, match="no linear layer"):
        quantize_int8(nn.Sequential(nn.Conv2d(1, 1, 3)), "dynamic")


@needs_torchao
@OWN_WARNINGS
def test_layers_of_one_input_stay_as_they_are() -> None:
    """Factors of rank 1, say, which torchao quantizes and cannot run."""
    with seeded("test_deploy"):
        network = nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 6)).eval()
    int8 = quantize_int8(network, "dynamic")
    x = torch.randn(5, 8, generator=generator("test_deploy"))
    with torch.inference_mode():
        torch.testing.assert_close(int8(x), network(x), rtol=0.05, atol=0.05)
    assert torch.equal(int8[1].weight, network[1].weight)  # type: ignore[index]
    assert serialized_bytes(int8) != serialized_bytes(network)


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(CompressionError, match=r"pip install 'experiment\[torchao\]'"):
        quantize_int8(lenet())


def test_serialized_bytes_are_those_of_a_file(tmp_path: Path) -> None:
    torch.save(lenet().state_dict(), tmp_path / "weights.pt")
    assert abs(serialized_bytes(lenet()) - (tmp_path / "weights.pt").stat().st_size) < 500  # names in the archive
