"""Everything that a GPU runs, on a second device that refuses tensors of the CPU (`second_device`).

They run in a process of their own, since torch cannot forget a device. By hand, with its output:
python -m pytest --noconftest -n0 -o pythonpath=tests/devices tests/devices/runs_on_second.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def test_on_a_second_device() -> None:
    options = ["--noconftest", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", f"pythonpath={HERE}"]
    paths = [str(HERE / f"{name}.py") for name in ("rules_of_second", "runs_on_second", "compress_on_second")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
