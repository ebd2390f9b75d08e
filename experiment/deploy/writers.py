"""Writers of exported files, one function a format: `(Deployed, path) -> None`.

Sources: torch.export, https://docs.pytorch.org/docs/stable/export.html; torch.onnx (dynamo exporter),
https://docs.pytorch.org/docs/stable/onnx_export.html; onnxruntime.quantization (static, QDQ),
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html; OpenVINO, https://docs.openvino.ai;
ExecuTorch (XNNPACK), https://docs.pytorch.org/executorch; safetensors, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from experiment.deploy.int8 import quantize_int8
from experiment.deploy.program import Deployed, exported
from experiment.escaping import json_text
from experiment.inputs import split, take, tensors
from experiment.layers.quantized_weights import FLOATS

CALIBRATED_AT_ONCE = 32  # inputs in one forward pass
MOST_AT_ONCE = 128  # samples of a batch in ExecuTorch, which plans its memory for the example
SPECIFICATION, TIED = "experiment", "tied"  # keys in the metadata of safetensors files


def pt2(network: Deployed, path: Path) -> None:
    """torch.export's own format."""
    torch.export.save(network.program, path)


def onnx(network: Deployed, path: Path) -> None:
    """ONNX, by torch's exporter; the inputs keep their names."""
    network.onnx.save(path)


def onnx_int8(network: Deployed, path: Path) -> None:
    """ONNX with int8 weights, one scale per output channel, and activations of 8 bits, one scale per tensor (QDQ)."""
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    onnxruntime.set_default_logger_severity(3)  # its own notes on shapes
    with TemporaryDirectory() as folder:
        whole, prepared = Path(folder) / "whole.onnx", Path(folder) / "prepared.onnx"
        onnx(network, whole)
        shape_inference.quant_pre_process(whole, prepared)
        names = [
            given.name
            for given in onnxruntime.InferenceSession(prepared, providers=["CPUExecutionProvider"]).get_inputs()
        ]

        class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
            batches = (
                dict(zip(names, (tensor.numpy() for tensor in tensors(part)), strict=True))
                for part in split(network.calibration, CALIBRATED_AT_ONCE)
            )

            def get_next(self) -> dict[str, Any] | None:
                return next(self.batches, None)

        quantization.quantize_static(
            prepared, path, Calibration(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip


def torchao_int8(network: Deployed, path: Path) -> None:
    """The graph of `quantize_int8(..., "static")` in torch.export's format."""
    quantized = quantize_int8(network.module, "static", calibration=network.calibration)
    torch.export.save(exported(quantized.graph, network.example), path)  # type: ignore[arg-type]


def openvino(network: Deployed, path: Path) -> None:
    """OpenVINO's IR in float32: an .xml file with the graph, a .bin file with the weights."""
    import openvino

    model = openvino.convert_model(network.program)
    shapes = [[-1, *tensor.shape[1:]] if tensor.dim() else [] for tensor in tensors(network.example)]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    openvino.save_model(model, path, compress_to_fp16=False)


def executorch(network: Deployed, path: Path) -> None:
    """An ExecuTorch program for XNNPACK, for batches of at most 128."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = exported(network.module, take(network.example, [0] * MOST_AT_ONCE), most=MOST_AT_ONCE)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def safetensors(network: Deployed, path: Path) -> None:
    """Weights and buffers by name, and how to rebuild the network in the metadata. Tied weights are stored once.

    Weights that are rounded to float16 or bfloat16 have this type in the file.
    """
    from safetensors.torch import save

    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in network.network.state_dict().items():
        first = names.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first != name and tensor.numel():
            tied[name] = first
        else:
            state[name] = tensor.to(FLOATS.get(network.dtypes.get(name, ""), tensor.dtype)).contiguous().clone()
    metadata = {SPECIFICATION: json_text(network.specification), TIED: json_text(tied)}
    path.write_bytes(save(state, metadata))
