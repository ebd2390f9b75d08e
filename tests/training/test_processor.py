"""What a process sets up before it computes on a CPU."""

import platform
import sys

import pytest
import torch

from experiment.training.processor import use_threads


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory"
)
def test_the_memory_of_a_step_serves_the_next_one() -> None:
    """Without asking the system for its 16,384 pages again."""
    import resource

    use_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20 * 16_384 / 2
    assert torch.get_num_threads() == 1
