"""Compressed networks leave torch by ONNX and compute the same in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiment import compress
from experiment.layers.masks import bake_masks
from experiment.networks.make_network import make_network
from experiment.random_streams import generator, seeded

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


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
