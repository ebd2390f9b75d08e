"""Exported files in their runtimes, as functions of arrays, and the process that runs them: `python -m` this module.

The process reads one request a line, in JSON, and answers with one line; arrays lie in files beside. So a runtime that
crashes, hangs or is not installed harms nobody else (`experiment.deploy.runtime_process`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import numpy.typing as npt

from experiment.escaping import json_text
from experiment.registry import resolve

Arrays = Sequence[npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]
FEWEST_RUNS = 3


def onnx(path: Path, threads: int, own_names: Sequence[str]) -> Run:
    """onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def openvino(path: Path, threads: int, own_names: Sequence[str]) -> Run:
    """OpenVINO on the CPU, in float32 even where the CPU has bfloat16."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda arrays: list(compiled(list(arrays)).to_tuple())


def pt2(path: Path, threads: int, own_names: Sequence[str]) -> Run:
    """The graph of torch.export, operator by operator."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_unflatten

    if path.name.endswith("_int8.pt2"):
        import torchao  # noqa: F401  its operators
    torch.set_num_threads(threads)
    program = torch.export.load(path)
    module, form, names = program.module(), program.call_spec.in_spec, program.graph_signature.user_inputs

    def run(arrays: Arrays) -> Arrays:
        given = iter(arrays)
        leaves = [torch.from_numpy(next(given)) if isinstance(name, str) else name for name in names]
        positional, named = tree_unflatten(leaves, form)
        with torch.inference_mode():
            return [tensor.numpy() for tensor in tree_leaves(module(*positional, **named)) if tensor is not None]

    return run


def executorch(path: Path, threads: int, own_names: Sequence[str]) -> Run:
    """ExecuTorch; larger batches than its memory is planned for are computed in parts."""
    import torch
    from executorch.runtime import Runtime

    torch.set_num_threads(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    most = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(arrays: Arrays) -> Arrays:
        parts = []
        for start in range(0, len(arrays[0]), most):
            part = [torch.from_numpy(array[start : start + most]) for array in arrays]
            parts.append([tensor.numpy().copy() for tensor in method.execute(part)])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    return run


def timed(run: Run, arrays: Arrays, seconds: float) -> dict[str, float]:
    """The time of a call: median and interquartile range in milliseconds, after two calls that do not count."""
    for _ in range(2):
        run(arrays)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < FEWEST_RUNS or time.perf_counter() < ends:
        started = time.perf_counter()
        run(arrays)
        times.append(1e3 * (time.perf_counter() - started))
    lower, median, upper = quantiles(times, n=4, method="inclusive")
    return {"median_ms": round(median, 5), "iqr_ms": round(upper - lower, 5)}


def main() -> None:
    """Answer requests until there are no more."""
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "run" in request:
                open_file: Any = resolve(request["run"])
                run = open_file(Path(request["file"]), request["threads"], request["own_names"])
            else:
                assert run is not None
                arrays = [np.load(folder / f"in-{i}.npy", allow_pickle=False) for i in range(request["inputs"])]
                answer = timed(run, arrays, request["seconds"]) if "seconds" in request else _kept(run(arrays), folder)
        except Exception as error:  # what the runtime refuses, it may say in any way
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json_text(answer) + "\n")
        answers.flush()
    shutil.rmtree(folder, ignore_errors=True)  # the parent was killed, or it would have ended this process


def _kept(outputs: Arrays, folder: Path) -> dict[str, Any]:
    for i, array in enumerate(outputs):
        np.save(folder / f"out-{i}.npy", array, allow_pickle=False)
    return {"outputs": len(outputs)}


if __name__ == "__main__":
    main()
