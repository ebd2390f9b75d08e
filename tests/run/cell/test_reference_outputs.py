"""Outputs of a reference network that are kept on disk: the same as computed, and computed again when damaged."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator
from experiment.run.cell import reference_outputs as module
from experiment.run.cell.reference_outputs import OutputsOf, reference_outputs
from experiment.tasks.classification import TASK
from experiment.training.evaluation import Observer, evaluate

X = torch.randn(23, 6, generator=generator("x"))
Y = torch.arange(23) % 4
DATA = PairData("test", (X, Y), torch.device("cpu"))


class Counted(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def outputs_of(network: nn.Module, path: Path) -> OutputsOf:
    def test(observer: Observer) -> object:
        return evaluate(network, DATA, device="cpu", batch_size=5, observers=[observer])

    return reference_outputs(network, TASK, len(DATA), test, path)


@pytest.mark.parametrize("most", [10**6, 10])
def test_kept_or_computed_they_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", most)
    network, path = Counted(6, 4), tmp_path / "kept" / "outputs.npy"
    first = outputs_of(network, path)
    assert path.is_file() == (most > 10)
    assert [p.name for p in tmp_path.rglob("*.partial*")] == []
    with torch.no_grad():
        expected = network(X)
    calls = network.calls
    again = outputs_of(network, path)
    for outputs in (first, again):
        assert torch.allclose(outputs(7, X[7:12]), expected[7:12], atol=1e-6)
    assert (network.calls == calls) == (most > 10), "nothing is computed twice if it is kept"


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_damaged_files_are_written_again(tmp_path: Path, content: bytes | None) -> None:
    network, path = Counted(6, 4), tmp_path / "outputs.npy"
    outputs_of(network, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] if content is None else content)
    outputs_of(network, path)
    assert path.read_bytes() == whole
