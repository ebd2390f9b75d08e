"""Seconds and peak memory of compressing large networks with random weights, through the public function.

    python tests/benchmark/large_networks.py --networks gpt2 vit_b_16 --methods WT SVD FT --threads 2
    python tests/benchmark/large_networks.py --source ../other-checkout     # the same with another version

gpt2 (124 million parameters) needs transformers. Every pair of network and method runs in a process of its own. Peak
memory is that of the process above what it had before the call, in multiples of the network's own bytes; the network,
which the process holds before, is added as 1.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rows import Row, show
from torch import Tensor, nn

METHODS = ["WT", "SNIP", "SVD", "ALDS", "PCA", "KLDS", "FT", "Quantize"]
WIDTHS = {"network": 10, "method": 10, "result": 60}


def gpt2() -> tuple[nn.Module, Tensor, Tensor]:
    """GPT-2 with token ids (8, 64) and the next tokens as targets."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.randint(0, 50257, (8, 65))
    return GPT2LMHeadModel(GPT2Config(use_cache=False)), tokens[:, :-1], tokens[:, 1:]


def vit_b_16() -> tuple[nn.Module, Tensor, Tensor]:
    """torchvision's ViT-B/16 with 16 images."""
    from torchvision.models import vit_b_16 as make

    network = make()
    nn.init.normal_(network.heads[0].weight, std=0.02)  # zeros otherwise
    return network, torch.randn(16, 3, 224, 224), torch.randint(0, 1000, (16,))


def vgg16() -> tuple[nn.Module, Tensor, Tensor]:
    """torchvision's VGG-16, with its layer of 25088 x 4096, and 16 images."""
    from torchvision.models import vgg16 as make

    return make(), torch.randn(16, 3, 224, 224), torch.randint(0, 1000, (16,))


NETWORKS = {"gpt2": gpt2, "vit_b_16": vit_b_16, "vgg16": vgg16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["gpt2", "vit_b_16"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one pair")
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[2], help="a checkout")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measured(arguments.networks[0], arguments.methods[0], arguments.keeps, arguments.threads)))
        return
    pairs = [(network, method) for network in arguments.networks for method in arguments.methods]
    show((in_own_process(*pair, arguments) for pair in pairs), WIDTHS, arguments.csv)


def in_own_process(network: str, method: str, arguments: argparse.Namespace) -> Row:
    """One row, or the last line of the error."""
    command = [
        sys.executable, __file__, "--alone", "--networks", network, "--methods", method,
        "--threads", str(arguments.threads), "--keeps", *map(str, arguments.keeps),
    ]  # fmt: skip
    row: Row = {"network": network, "method": method, "seconds": "", "memory": "", "result": ""}
    environment = {**os.environ, "PYTHONPATH": str(arguments.source)}
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return row | {"seconds": f">{arguments.limit:.0f}", "result": "stopped at the limit"}
    if ran.returncode:
        return row | {"result": (ran.stderr.strip().splitlines() or ["killed"])[-1][:120]}
    return row | json.loads(ran.stdout.strip().splitlines()[-1])


def measured(network: str, method: str, keeps: list[float], threads: int) -> Row:
    """Seconds, memory and size of one pair, in this process."""
    from experiment import compress, compress_many

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    net, inputs, targets = NETWORKS[network]()
    own = sum(p.numel() * p.element_size() for p in net.parameters())
    compress(nn.Linear(8, 8), "SVD", keep=0.9, example=torch.randn(1, 8), progress=False)  # imports
    given: dict[str, Any] = {"example": inputs[:1], "data": [(inputs, targets)], "progress": False}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for result in compress_many(net, method, keeps=[None] if method == "Quantize" else keeps, **given):
        text = repr(result)
    seconds = time.perf_counter() - start
    memory = 1 + (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / own
    return {"seconds": f"{seconds:.1f}", "memory": f"{memory:.1f}x", "result": text}


if __name__ == "__main__":
    main()
