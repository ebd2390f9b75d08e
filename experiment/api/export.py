"""Export your own network: `export_network`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from experiment.api.compression import CompressionResult
from experiment.deploy.export import write_exported
from experiment.deploy.formats import find_format
from experiment.deploy.program import deployed
from experiment.inputs import Inputs, as_inputs, mapped, moved
from experiment.layers.plan import Plan
from experiment.layers.prepare_network import require_module
from experiment.run.disk.specification import specification_of


def export_network(
    network: nn.Module | CompressionResult,
    path: str | Path,
    *,
    example: Inputs,
    format: str | None = None,
    calibration: Inputs | None = None,
) -> list[Path]:
    """Write a network to a file for another runtime, for batches of any size.

        result = compress(net, "ALDS", keep=0.5, example=x)
        export_network(result, "small.onnx", example=x)
        export_network(result, "small.onnx", example=x, format="onnx_int8", calibration=images)

    Args:
        network: compressed or not, or what `compress` returned; unchanged. Masks and rounding are applied to the
            weights. A safetensors file of a result can be loaded: `load_network("small.safetensors", network=net)`.
        path: the file to write.
        example: a batch of inputs as the network expects them, a tensor (N, ...), a tuple or a dictionary.
        format: onnx, onnx_int8, pt2, torchao_int8, openvino, executorch or safetensors. Default: from the ending of the
            file, .onnx, .pt2, .xml, .pte or .safetensors.
        calibration: inputs by which int8 formats choose their scales, a few hundred; required by them.
    Returns: the files written, several if the format consists of several.
    Raises:
        ConfigError: the format is unknown, or does not fit the ending.
        CompressionError: a package is missing, or the network cannot be exported; the message says why.
    """
    result = network if isinstance(network, CompressionResult) else None
    module = network.network if isinstance(network, CompressionResult) else network
    require_module(module)
    chosen = find_format(format, Path(path))
    plan, about = (Plan(), {}) if result is None else (result.plan, {"method": result.method})
    if calibration is not None:
        calibration = moved(mapped(as_inputs(calibration, "calibration"), Tensor.detach), "cpu")
    form = deployed(
        module, as_inputs(example), calibration=calibration, specification=specification_of(plan, None, about)
    )
    return write_exported(form, chosen, Path(path))
