"""What the zoo does with one network: compress it, and check what comes out, in this process and in a fresh one."""

import contextlib
import copy
import ctypes
import gc
import os
import random
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_networks import Specimen

from experiment import CompressionResult, compress, load_network, save_network
from experiment.errors import ExperimentError, InfeasibleBudget
from experiment.inputs import as_inputs, batch_size, call_network, output_tensors, split
from experiment.layers.masks import bake_masks, named_masks
from experiment.measure import count
from experiment.methods import METHODS

KEEP = 0.5
WITHOUT_DATA = ("WT", "ALDS", "SVD", "FT", "Quantize")
FINE = "yes"
NOR_DENSE = "nor dense"  # what fails for the compressed network fails for the dense one, too

Row = dict[str, Any]


def make(specimen: Specimen, seed: int = 0) -> tuple[nn.Module, Any]:
    """The network in eval mode and its inputs; both follow from the seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    torch.set_num_threads(1)
    network = specimen.make().eval()
    return network, as_inputs(specimen.inputs())


def trial(specimen: Specimen, network: nn.Module, inputs: Any, label: str, folder: Path, onnx: bool) -> Row:
    """One row: a network compressed by one method, and what holds for the result.

    The result and its outputs are left in the folder for `reloaded`. Every check is `yes` or says what is wrong.
    """
    warm_up(label)
    give_back_memory()
    before = resident_mib()
    reset_peak()
    begun = time.perf_counter()
    row: Row = {"parameters": sum(p.numel() for p in network.parameters())}
    try:
        result = _compressed(network, inputs, label, KEEP)
    except InfeasibleBudget as error:
        row |= {"verdict": "refused", "reason": _first_line(error), "seconds": _since(begun)}
        row["keep"] = round(error.smallest / error.original, 4)
        return row | {"reach": _reach_of(network, inputs, label, error)}
    except ExperimentError as error:
        return row | {"verdict": "refused", "reason": _first_line(error), "seconds": _since(begun)}
    row |= {"seconds": _since(begun), "peak_mib": peak_mib() - before}
    row |= {"verdict": "ok", "keep": round(result.keep_parameters, 4), "reach": _reach(result)}
    outputs = _outputs(result.network, inputs)
    row["finite"] = FINE if all(bool(t.isfinite().all()) for t in outputs) else "NaN or infinity"
    row["counted"] = _counted(result, network, inputs, label)
    save_network(result, folder / f"{label}.pt")
    torch.save(outputs, folder / f"{label}.outputs")
    if onnx:
        row["onnx"] = _checked(_same_in_onnx, result.network, inputs, outputs, folder)
        if row["onnx"] != FINE and _checked(_same_in_onnx, network, inputs, _outputs(network, inputs), folder) != FINE:
            row["onnx"] = NOR_DENSE
    row["step"] = _checked(_trained, result.network, inputs, specimen.train)
    if row["step"] != FINE and _checked(_trained, copy.deepcopy(network), inputs, specimen.train) != FINE:
        row["step"] = NOR_DENSE
    return row


def reloaded(specimen: Specimen, folder: Path, labels: list[str]) -> dict[str, str]:
    """Whether saved networks have their outputs again, in a process that has not compressed anything.

    The network that they are loaded into has other weights than the one that was compressed.
    """
    _, inputs = make(specimen)
    original, _ = make(specimen, seed=1)
    return {label: _checked(_same_again, original, inputs, folder / label) for label in labels}


def _compressed(network: nn.Module, inputs: Any, label: str, keep: float) -> CompressionResult:
    settings = {} if METHODS[label].kind == "quantization" else {"keep": keep}
    parts = () if label in WITHOUT_DATA else split(inputs, 1)
    data = [(part, torch.zeros(batch_size(part), dtype=torch.int64)) for part in parts] or None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compress(network, label, example=inputs, data=data, progress=False, **settings)


def _reach_of(network: nn.Module, inputs: Any, label: str, error: InfeasibleBudget) -> float | None:
    """What a method reaches that cannot reach the budget, from the smallest network that it can make."""
    if error.smallest >= error.original:
        return 0.0
    try:
        return _reach(_compressed(network, inputs, label, (error.smallest + 1) / error.original))
    except ExperimentError:
        return None


def _reach(result: CompressionResult) -> float:
    """The share of parameters that are not in rows of kind `unreachable`."""
    rows = result.layers
    left_out = int(rows.loc[rows["kind"] == "unreachable", "parameters_before"].sum())
    return round(1 - left_out / result.parameters_before, 4)


def _counted(result: CompressionResult, network: nn.Module, inputs: Any, label: str) -> str:
    again = count(result.network, inputs).parameters
    sizes = {result.parameters, again, _elements(result.network)} | ({result.plan.parameters} - {None})
    if len(sizes) > 1:
        return f"planned {result.plan.parameters}, reported {result.parameters}, counted {again}"
    if METHODS[label].kind != "quantization" and again > KEEP * sum(p.numel() for p in network.parameters()):
        return f"{again} exceed the budget"
    return FINE


def _elements(network: nn.Module) -> int:
    """Elements that are not masked, counted without the package's own counter."""
    gone = sum(int((~mask).sum()) for mask in {id(m): m for m in named_masks(network).values()}.values())
    return sum(p.numel() for p in network.parameters()) - gone


def _trained(network: nn.Module, inputs: Any, train: bool) -> str:
    """One step of SGD on a sum of squares of the outputs keeps shapes, masks and ties."""
    before = _structure(network)
    network.train(train)
    try:
        loss = sum((t + 1).square().sum() for t in output_tensors(call_network(network, inputs)) if t.requires_grad)
        assert isinstance(loss, Tensor), "no output depends on the parameters"
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        loss.backward()
        if not any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()):
            return "no gradient"
        optimizer.step()
    finally:
        network.eval()
    after = _structure(network)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if changed:
        return f"{sorted(changed)[0]} changed"
    weights = dict(bake_masks(network).named_parameters(remove_duplicate=False))
    alive = [n for n, m in named_masks(network).items() if n in weights and bool((weights[n] * ~m).abs().sum() > 0)]
    return f"masked weights of {alive[0]} are alive" if alive else FINE


def _structure(network: nn.Module) -> Mapping[str, object]:
    """Of every parameter: its shape, the first parameter that it is, and how much of it is masked."""
    first: dict[int, str] = {}
    shared = {name: first.setdefault(id(p), name) for name, p in network.named_parameters(remove_duplicate=False)}
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters(remove_duplicate=False)}
    masks = {f"mask of {name}": int(mask.sum()) for name, mask in named_masks(network).items()}
    return {name: (shapes[name], shared[name]) for name in shapes} | masks


def _same_again(original: nn.Module, inputs: Any, stem: Path) -> str:
    network = load_network(stem.with_name(f"{stem.name}.pt"), network=original)
    expected = torch.load(stem.with_name(f"{stem.name}.outputs"), weights_only=True)
    return _difference(_outputs(network, inputs), expected)


def _same_in_onnx(network: nn.Module, inputs: Any, expected: list[Tensor], folder: Path) -> str:
    import onnxruntime

    file = folder / "network.onnx"
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    if kwargs and getattr(getattr(network, "config", None), "use_cache", False):
        kwargs = {**kwargs, "use_cache": False}  # torch exports no cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(bake_masks(network), args, file, kwargs=kwargs, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    feed = {taken.name: value.numpy() for taken, value in zip(session.get_inputs(), tensors, strict=True)}
    found = [torch.from_numpy(array) for array in session.run(None, feed)]
    return _difference(found[: len(expected)], expected, tolerance=1e-3)


def _difference(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> str:
    if [t.shape for t in found] != [t.shape for t in expected]:
        return f"{[tuple(t.shape) for t in found]} instead of {[tuple(t.shape) for t in expected]}"
    scales = [max(float(e.abs().max()), 1e-6) if e.numel() else 1.0 for e in expected]
    errors = [
        float((f.double() - e.double()).abs().max()) / scale if e.numel() else 0.0
        for f, e, scale in zip(found, expected, scales, strict=True)
    ]
    return FINE if max(errors, default=0.0) <= tolerance else f"differs by {max(errors):.2g}"


def _outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.inference_mode():
        return [t.clone() for t in output_tensors(call_network(network.eval(), inputs))]


def _checked(check: Any, *arguments: Any) -> str:
    """What a check says, or the error in it."""
    try:
        return str(check(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 2)


def warm_up(label: str) -> None:
    """Import what compressing imports, so that it counts for no network."""
    small = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with contextlib.suppress(ExperimentError):
        _compressed(small, torch.randn(2, 8), label, 0.9)


def give_back_memory() -> None:
    """Return freed memory to the system, so that what a method takes is seen."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Forget the most memory that this process held, where Linux allows it."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> int:
    return _status_mib("VmHWM")


def resident_mib() -> int:
    return _status_mib("VmRSS")


def _status_mib(key: str) -> int:
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(f"{key}:"))
