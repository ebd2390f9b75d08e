"""Two processes that train together against one that trains alone, at the same batches."""

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.errors import ConfigError
from experiment.layers.shared_batchnorm import SharedBatchNorm, sharing_statistics
from experiment.training.distributed import Team
from experiment.training.loop import TrainingLoop
from experiment.training.settings import TrainSettings

Outcomes = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
SECONDS = 600.0  # until a test gives up waiting for a process


def be_one_of(folder: Path, environment: dict[str, str]) -> None:
    """What a process does: all scenarios, alone or as one of two."""
    os.environ.update(environment)
    sys.path.insert(0, str(Path(__file__).parent))
    import two_ranks

    two_ranks.main(folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What one process found alone, and what the first and second of two found together.

    The processes are forked from this one, so that they need not import torch again.
    """
    folder = tmp_path_factory.mktemp("outcomes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (folder / "alone").mkdir()
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    fork = multiprocessing.get_context("fork")
    calls = [(folder / "alone", {}), *((folder, together | {"RANK": rank}) for rank in "01")]
    processes = [fork.Process(target=be_one_of, args=call, daemon=True) for call in calls]
    try:
        with warnings.catch_warnings():  # newer Pythons warn of threads, of which this process has none that matter
            warnings.simplefilter("ignore", DeprecationWarning)
            for process in processes:
                process.start()
        for process in processes:
            process.join(SECONDS)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        alone, first, second = (torch.load(folder / name) for name in ("alone/1-0.pt", "2-0.pt", "2-1.pt"))
        yield alone, first, second
    finally:
        for process in processes:
            process.kill()


def close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance)


@pytest.mark.parametrize(
    "scenario",
    [
        "batchnorm",
        "routed",
        "masked",
        "weighted",
        "continued",
        "distilled",
        "keywords",
        "penalised",
        "segmenting",
        "unused_head",
    ],
)
def test_two_processes_end_where_one_does(outcomes: Outcomes, scenario: str) -> None:
    """The last batch has 11 images; early stopping and ReduceLROnPlateau decide by what both found."""
    alone, first, second = (outcome[scenario] for outcome in outcomes)
    assert first["records"] == second["records"]
    assert len(first["records"]) == 3
    for mine, theirs in zip(alone["records"], first["records"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    close(alone["state"], first["state"], rtol=1e-3, atol=1e-5)
    close(first["state"], second["state"], rtol=0, atol=0)


def test_gradients_are_those_of_the_whole_batch(outcomes: Outcomes) -> None:
    alone, first, second = (outcome["gradients"] for outcome in outcomes)
    close(alone, first, rtol=1e-10, atol=1e-12)
    close(first, second, rtol=0, atol=0)


def test_a_continued_training_ends_as_an_uninterrupted_one(outcomes: Outcomes) -> None:
    _, first, _ = outcomes
    assert first["continued"]["records"] == first["batchnorm"]["records"]
    close(first["continued"]["state"], first["batchnorm"]["state"], rtol=0, atol=0)


def test_masked_weights_stay_zero(outcomes: Outcomes) -> None:
    for outcome in outcomes:
        state = outcome["masked"]["state"]
        weight, mask = (state[f"5.parametrizations.weight.{name}"] for name in ("original", "0.mask"))
        assert 0 < int(mask.sum()) < mask.numel()
        assert float(weight[~mask].abs().max()) == 0


def test_distillation_and_penalties_make_a_difference(outcomes: Outcomes) -> None:
    _, first, _ = outcomes
    plain, taught, penalised = (first[name]["state"]["8.weight"] for name in ("batchnorm", "distilled", "penalised"))
    assert (taught - plain).abs().max() > 1e-2
    assert (penalised - plain).abs().max() > 1e-2
    assert (first["penalised"]["state"]["5.weight"] == 0).any()


def test_an_auxiliary_head_learns_where_the_loss_counts_it(outcomes: Outcomes) -> None:
    for outcome in outcomes:
        counted, not_counted = (outcome[name]["state"]["second.weight"] for name in ("segmenting", "unused_head"))
        assert (counted - not_counted).abs().max() > 1e-2
        assert outcome["segmenting"]["records"][-1]["valid_mean_iou"] > 0.1


def test_bfloat16_and_channels_last_are_close(outcomes: Outcomes) -> None:
    alone, first, second = (outcome["low_precision"] for outcome in outcomes)
    close(first["state"], second["state"], rtol=0, atol=0)
    for mine, theirs in zip(alone["records"], first["records"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=0.02)


def test_divergence_is_noticed_by_all_alike(outcomes: Outcomes) -> None:
    alone, first, second = (outcome["diverging"] for outcome in outcomes)
    assert first == second
    assert "training diverged in epoch 0" in first["error"]
    assert "training diverged in epoch 0" in alone["error"]


def test_each_process_drops_other_activations(outcomes: Outcomes) -> None:
    _, first, second = (outcome["dropout"]["dropped"] for outcome in outcomes)
    assert 0.3 < float(first.float().mean()) < 0.7
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layer", ["plain", "not affine", "cumulative", "untracked"])
def test_shared_batchnorm_is_batchnorm_of_the_whole_batch(outcomes: Outcomes, layer: str) -> None:
    alone, first, second = (outcome["layers"][layer] for outcome in outcomes)
    for k, part in enumerate((first, second)):
        torch.testing.assert_close(part["y"], alone["y"][k::2])
        torch.testing.assert_close(part["gradients"][0], alone["gradients"][0][k::2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(part["gradients"][1:], alone["gradients"][1:], rtol=1e-4, atol=1e-4)
        close(part["state"], alone["state"])
        if layer != "untracked":  # which has nothing but the batch at hand to normalise by
            torch.testing.assert_close(part["evaluated"], alone["evaluated"][k::2])


def test_a_shared_evaluation_finds_the_same(outcomes: Outcomes) -> None:
    alone, first, second = (outcome["evaluated"] for outcome in outcomes)
    assert first == second == pytest.approx(alone, rel=1e-12)


def test_layers_are_themselves_again_after_sharing() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3)))
    layers = list(network.modules())
    tensors = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    with sharing_statistics(network):
        assert isinstance(network[0], SharedBatchNorm)
        assert isinstance(network[1][0], SharedBatchNorm)
        assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == tensors
        network.eval()
    assert list(network.modules()) == layers
    assert not any(layer.training for layer in layers)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "size", "part"),
    [(90, 16, 2, None), (90, 2, 3, "Got 2 (batchSize;"), (34, 16, 3, "Got 2 (the last batch"), (33, 16, 3, None)],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    num_images: int, batch_size: int, size: int, part: str | None
) -> None:
    problem = Team(1, size).problem(num_images, batch_size)
    assert problem is None if part is None else part in (problem or "")


def test_a_training_that_cannot_be_shared_is_refused(network: nn.Sequential, images: Any) -> None:
    settings = TrainSettings(num_epochs=1, batch_size=2)
    with pytest.raises(ConfigError, match="3 processes train together"):
        TrainingLoop(network, images, settings, valid=None, stream=(), device="cpu", team=Team(0, 3))
