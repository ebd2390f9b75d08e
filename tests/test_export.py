"""Compressed networks leave torch by ONNX and compute the same in onnxruntime."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.layers.masks import bake_masks
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids)
        x = x + self.down(self.up(x).relu())
        return {"logits": self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))}


@pytest.mark.parametrize("method", ["FT", "WT"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
def test_inputs_keep_their_names(method: str, tmp_path: Path) -> None:
    with seeded("export"):
        network, ids = Tokens().eval(), torch.randint(30, (4, 7))
    inputs = {"ids": ids, "mask": (torch.arange(7) < torch.arange(3, 7)[:, None]).long()}
    compressed = compress(network, method, keep=0.6, example=inputs).network
    with torch.inference_mode():
        expected = compressed(**inputs)["logits"]
    file = tmp_path / "network.onnx"
    torch.onnx.export(bake_masks(compressed), (), file, kwargs=inputs, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["FT", "ALDS", "WT", "Quantize"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
def test_a_compressed_network_is_the_same_in_onnxruntime(method: str, tmp_path: Path) -> None:
    with seeded("export"):
        network = make_network("resnet20", {}, (3, 16, 16), 10).eval()
    x = torch.randn(3, 3, 16, 16, generator=generator("inputs"))
    compressed = compress(network, method, keep=None if method == "Quantize" else 0.4, example=x).network
    with torch.inference_mode():
        expected = compressed(x)
    assert not torch.allclose(expected, network(x), rtol=1e-5)  # something was done
    file = tmp_path / "network.onnx"
    torch.onnx.export(bake_masks(compressed), (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
