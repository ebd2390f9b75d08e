"""Post-training quantization of weights and activations to int8 for CPUs, with torchao.

`dynamic` quantizes linear layers: weights have one scale per output channel, activations one per sample, computed at
run time; products are accumulated in int32. `static` folds BatchNorm and quantizes convolutions and linear layers;
activations have one scale per tensor, estimated on calibration data. Without compilation, its graph rounds weights and
activations to int8 and multiplies them as floats, exact up to the order of sums; `torch.compile(int8)` under
`torch._inductor.config.freezing` compiles the graph to integer kernels.

Source: torchao, https://github.com/pytorch/ao: Int8DynamicActivationInt8WeightConfig; PT2E quantization with
X86InductorQuantizer.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from experiment.deploy.program import exported
from experiment.errors import CompressionError
from experiment.inputs import Inputs, as_inputs, batch_size, call_network, first, mapped, moved, split, tensors
from experiment.layers.forward_pass import forward_of
from experiment.layers.prepare_network import plain_copy

if TYPE_CHECKING:
    from torch.fx import GraphModule

CALIBRATED_AT_ONCE = 64  # inputs in one forward pass


def quantize_int8(
    network: nn.Module, mode: Literal["dynamic", "static"] = "dynamic", *, calibration: Inputs | None = None
) -> nn.Module:
    """Quantize a network to int8 for the CPU.

        int8 = quantize_int8(network, "static", calibration=calibration_inputs(param))
        evaluate(param, int8)         # its accuracy in int8
        serialized_bytes(int8)        # its size

    Args:
        network: compressed or not; masks and rounding are applied first. It is unchanged.
        mode: `dynamic` or `static`, see above.
        calibration: inputs as the network expects them, a tensor (N, ...) or several, for `static`: a few hundred, at
            least 2.
    Returns: a copy in eval mode, for batches of any size.
    Raises: CompressionError: torchao is not installed, there is nothing to quantize, or calibration data are missing,
        unsuitable, or have no effect.
    """
    _require_torchao()
    plain = plain_copy(network).cpu().eval()
    if mode == "dynamic":
        if calibration is not None:
            raise CompressionError("calibration has no effect in mode 'dynamic', which finds scales at run time.")
        return _dynamic(plain)
    if mode != "static":
        raise CompressionError(f"mode must be 'dynamic' or 'static'. Got {mode!r}.")
    inputs = None if calibration is None else mapped(as_inputs(calibration, "calibration"), Tensor.detach)
    if inputs is None or batch_size(inputs) < 2:
        raise CompressionError(
            "mode 'static' needs calibration data, at least two inputs, normalised as for training. Pass them: "
            "quantize_int8(network, 'static', calibration=inputs)."
        )
    inputs = moved(inputs, "cpu")
    _check_calibration(plain, inputs)
    return _static(plain, inputs)


class ExportedNetwork(nn.Module):
    """A graph exported in eval mode. It stays in it, since exported graphs raise on `train()`."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.training = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.graph(*inputs, **named)

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Does nothing: there is only one mode."""
        return self


def serialized_bytes(network: nn.Module) -> int:
    """The size in bytes of a network's weights and buffers as written by torch.save."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell()


def _require_torchao() -> None:
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise CompressionError(
            "int8 on the CPU needs torchao, which is not installed: python -m pip install 'experiment[torchao]'."
        ) from error


def _check_calibration(plain: nn.Module, inputs: Inputs) -> None:
    """Raises: CompressionError: the inputs are not finite, or the network fails on them."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors(inputs)):
        raise CompressionError("calibration: inputs must be finite. Got infinity: are they scaled as in training?")
    forward_of("calibration", plain, first(inputs, 2))


def _dynamic(plain: nn.Module) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    if not any(_is_wide(module, name) for name, module in plain.named_modules()):
        raise CompressionError(
            "the network has no linear layer for mode 'dynamic'. Use 'static', which also quantizes convolutions."
        )
    quantize_(plain, Int8DynamicActivationInt8WeightConfig(), filter_fn=_is_wide)
    return plain


def _is_wide(module: nn.Module, name: str) -> bool:
    """Whether a linear layer has several inputs: torchao cannot run those with one, such as factors of rank 1."""
    return isinstance(module, nn.Linear) and module.in_features > 1


def _static(plain: nn.Module, inputs: Inputs) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    graph = exported(plain, first(inputs, 2)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for part in split(inputs, CALIBRATED_AT_ONCE):
            call_network(prepared, part)
    converted = convert_pt2e(prepared)
    _drop_unused(converted)
    return ExportedNetwork(converted)


def _drop_unused(graph: GraphModule) -> None:
    """Delete the parameters and buffers that the graph does not use, such as the original float weights."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [n for n, _ in (*graph.named_parameters(), *graph.named_buffers()) if n not in used]:
        module, _, own = name.rpartition(".")
        delattr(graph.get_submodule(module), own)
