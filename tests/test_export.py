"""Exported networks compute the same in their runtimes; what a runtime does wrong stays in its process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment import compress, export_network, load_network
from experiment.api.compression import CompressionResult
from experiment.deploy import runtime_process
from experiment.deploy.formats import FORMATS, Format
from experiment.deploy.program import deployed
from experiment.deploy.runtime_process import InRuntime, RuntimeProcess
from experiment.errors import CompressionError, ConfigError, RuntimeFailed
from experiment.inputs import Inputs, call_network, first, output_tensors
from experiment.random_streams import seeded

pytestmark = pytest.mark.slow

WITHIN = {"onnx_int8": 0.05, "torchao_int8": 0.05}  # of outputs around 1; others differ by rounding


class Tokens(nn.Module):
    """Two inputs of integers, two outputs, whose names come in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids)
        x = x + self.down(self.up(x).relu())
        return {"hidden": x, "logits": self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))}


def cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[nn.Module, CompressionResult, Inputs]]:
    """Name -> the original, what compress made of it, and inputs."""
    with seeded("export"):
        image, text, x = cnn(), Tokens().eval(), torch.randn(64, 3, 9, 9)
        ids = torch.randint(30, (64, 7))
    words = {"mask": (torch.arange(7) < 1 + torch.arange(64)[:, None] % 7).long(), "ids": ids}
    return {
        "masked": (image, compress(image, "WT", keep=0.5, example=x), x),
        "low rank": (image, compress(image, "SVD", keep=0.5, example=x), x),
        "tokens": (text, compress(text, "WT", keep=0.6, example=words), words),
        "float16": (image, compress(image, "Quantize", dtype="float16", example=x), x),
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_the_outputs_of_torch(name: str, networks: dict[str, Any], tmp_path: Path) -> None:
    chosen = FORMATS[name]
    if chosen.missing:
        pytest.skip(f"needs {chosen.missing}")
    with RuntimeProcess(chosen, threads=1) as process:
        for kind in ("masked", "low rank", "tokens") if name == "onnx" else ("masked", "tokens"):
            original, result, inputs = networks[kind]
            with torch.no_grad():
                wanted = call_network(result.network, first(inputs, 9))
            files = export_network(
                result, tmp_path / kind / chosen.file, example=first(inputs), format=name,
                calibration=inputs if chosen.int8 else None,
            )  # fmt: skip
            assert sorted(files) == sorted((tmp_path / kind).iterdir())
            if name == "safetensors":  # without an architecture only the user has the original
                found: Any = call_network(load_network(files[0], network=original), first(inputs, 9))
            else:
                process.open(files[0])
                found = call_network(InRuntime(process, deployed(result.network, inputs).output), first(inputs, 9))
            for ours, theirs in zip(output_tensors(found), output_tensors(wanted), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=WITHIN.get(name, 1e-5))


def test_a_safetensors_file_has_half_floats_and_tied_weights_once(networks: dict[str, Any], tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    (file,) = export_network(tied, tmp_path / "tied.safetensors", example=torch.ones(1, 8))
    again = load_network(file, network=nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    assert torch.equal(again[1].weight, tied[0].weight)  # type: ignore[index, arg-type]
    original, result, _ = networks["float16"]
    (small,) = export_network(result, tmp_path / "small.safetensors", example=torch.ones(1, 3, 9, 9))
    (whole,) = export_network(original, tmp_path / "whole.safetensors", example=torch.ones(1, 3, 9, 9))
    assert small.stat().st_size < 0.65 * whole.stat().st_size


@pytest.mark.parametrize(
    ("path", "settings", "error", "says"),
    [
        ("net.tflite", {}, ConfigError, "must end in .onnx, .pt2, .xml"),
        ("net.onnx", {"format": "pt2"}, ConfigError, "must end in .pt2"),
        ("net.onnx", {"format": "onx"}, ConfigError, "Did you mean 'onnx'"),
        ("net.onnx", {"format": "onnx_int8"}, CompressionError, "needs calibration inputs"),
        ("net.pt2", {}, CompressionError, "cannot trace the network for batches of any size"),
    ],
)
def test_what_cannot_be_exported_says_why(
    path: str, settings: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    class OneBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 4)

    with pytest.raises(error, match=says):
        export_network(OneBatch(), tmp_path / path, example=torch.ones(2, 4), **settings)
    assert list(tmp_path.iterdir()) == []


FAULTY = """
import os, time

def crash(*how):
    print("about to fall", file=os.sys.stderr, flush=True)
    os.abort()

def hang(*how):
    time.sleep(600)

def refuse(*how):
    raise ValueError("no operator Foo")

def short(*how):
    return lambda arrays: arrays[:0]
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of runtimes that fail, importable in the process of a runtime."""
    (tmp_path / "faulty_runtime.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("crash", r"crashed \(SIGABRT\): about to fall"),
        ("hang", "no answer within 2 s"),
        ("refuse", "ValueError: no operator Foo"),
        ("short", "expected 1 outputs, as in torch. Got 0"),
    ],
)
@pytest.mark.usefixtures("faulty")
def test_a_faulty_runtime_harms_nobody(fault: str, says: str, tmp_path: Path) -> None:
    made = Format("faulty", "network.bin", "", f"faulty_runtime:{fault}")
    with RuntimeProcess(made, threads=1, seconds=2.0 if fault == "hang" else runtime_process.SECONDS) as process:

        def run() -> Any:
            process.open(tmp_path / "network.bin")
            return InRuntime(process, torch.ones(1))(torch.ones(2))

        with pytest.raises(RuntimeFailed, match=says):
            run()
