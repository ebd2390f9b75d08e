"""Seconds and memory of every step of compressing a Llama of up to a billion parameters, with random weights.

    python tests/benchmark/llama.py --parameters 250m --method WT
    python tests/benchmark/llama.py --parameters 1.1b --method SVD-LLM --folder /tmp/llama --threads 2

Needs transformers. The weights are bfloat16, in shards of safetensors that are written first and read as a user's are.
Memory is the most that was resident during a step, above what the process held before it made the network: in GiB, and
in multiples of the network's own bytes, the network included. Other work on the machine changes `seconds`, and
`cpu_seconds` hardly.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from rows import Row, show

GIB = 2**30
SIZES = {  # 1.1b has the shape of TinyLlama, 250m three of its 22 blocks
    "60m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10, "num_attention_heads": 8},
    "250m": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 3, "num_attention_heads": 32},
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "WT": ("WT", {}),
    "Quantize": ("Quantize", {"dtype": "int4", "group_size": 128}),
    "SVD-LLM": ("SVD-LLM", {}),
}
WIDTHS = {"step": 9, "seconds": 8, "peak_gib": 8, "of_network": 10}
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SIZES, default="60m")
    parser.add_argument("--method", choices=METHODS, default="WT")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences of 256 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where shards are kept for further runs; default: a temporary one")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)) / arguments.parameters
        if not folder.exists():
            write_shards(arguments.parameters, folder)
        import transformers.models.llama.modeling_llama  # noqa: F401  before the first measurement

        import experiment  # noqa: F401

        steps = Steps()
        sizes = compressed(arguments, folder, Path(temporary) / "network.pt", steps)
    show(steps.rows, WIDTHS, arguments.csv)
    print(sizes)


def write_shards(size: str, folder: Path) -> None:
    """A network with random weights, as `save_pretrained` writes it."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM._from_config(config_of(size), dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="500MB")


def config_of(size: str) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=32000, num_key_value_heads=4, use_cache=False, **SIZES[size])


def compressed(arguments: argparse.Namespace, folder: Path, file: Path, steps: "Steps") -> str:
    """Compress step by step, as `compress` does; returns the sizes in words."""
    from transformers import LlamaForCausalLM

    from experiment.api.compression import _count_original, result_of, save_network
    from experiment.layers.plan import State
    from experiment.layers.prepare_network import prepared
    from experiment.measure import count, recount
    from experiment.methods.base import Calibration, Compressed, Compressor, make_method
    from experiment.methods.configure import configure
    from experiment.run.disk.load_weights import load_given
    from experiment.run.grid.weights_file import find_given

    spec, given = configure(*METHODS[arguments.method]), find_given(str(folder), folder)
    assert given is not None
    network = LlamaForCausalLM._from_config(config_of(arguments.parameters), dtype=torch.bfloat16).eval()
    steps.own_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    steps.run("load", lambda: load_given(network, given))
    tokens = torch.randint(0, 32000, (arguments.samples, 256), generator=torch.Generator().manual_seed(0))
    state, calibration = State(prepared(network).network, {"input_ids": tokens[:1]}), Calibration({"input_ids": tokens})
    original = steps.run("count", lambda: _count_original(state))
    method, generator = make_method(spec.entry, spec.settings), torch.Generator().manual_seed(0)
    compressor = steps.run("analyse", lambda: Compressor(method, state, original, calibration, generator))
    plan = steps.run("plan", lambda: compressor.plan(1.0 if spec.fixed_size else arguments.keep))
    built = steps.run("fill", lambda: compressor.instantiate(plan))
    counted = steps.run("recount", lambda: count(built, state.example) if plan.factors else recount(built, original))
    result = result_of(spec.label, original, Compressed(built, plan, counted))
    steps.run("save", lambda: save_network(result, file))
    return f"{result}, network {steps.own_bytes / GIB:.2f} GiB, file {file.stat().st_size / GIB:.2f} GiB"


class Steps:
    """Measures steps one after the other, above what the process holds before the first."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.own_bytes = 0
        self._before = _resident("VmRSS")

    def run(self, name: str, step: Callable[[], Result]) -> Result:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        start, start_cpu = time.perf_counter(), time.process_time()
        result = step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        peak = _resident("VmHWM") - self._before
        self.rows.append(
            {
                "step": name,
                "seconds": f"{seconds:.1f}",
                "cpu_seconds": f"{cpu:.1f}",
                "peak_gib": f"{peak / GIB:.2f}",
                "of_network": f"{peak / self.own_bytes:.2f}x",
            }
        )
        print(name, "done", file=sys.stderr)
        return result


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
