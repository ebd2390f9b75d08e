"""A training that is killed and continued ends as an uninterrupted one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages
from experiment.training import checkpoint as module
from experiment.training import loop
from experiment.training.checkpoint import Checkpoint
from experiment.training.evaluation import Metrics
from experiment.training.loop import EpochRecord, TrainingLoop
from experiment.training.settings import PenaltySpec, SchedulerSpec, TrainSettings

SETTINGS = TrainSettings(
    num_epochs=5,
    batch_size=16,
    optimizer_kwargs={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    schedulers=(
        SchedulerSpec("ReduceLROnPlateau", {"patience": 0, "factor": 0.5}),
        SchedulerSpec("CosineAnnealingLR", {}, {"T_max": 5}),
        SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 1}),
    ),
    early_stop_epoch=1,
)
ADAM = TrainSettings(num_epochs=5, batch_size=16, optimizer="AdamW", optimizer_kwargs={"lr": 0.01})
CHANNELS_LAST = TrainSettings(num_epochs=5, batch_size=16, precision="bf16", channels_last=True)


def run(
    network: nn.Module, settings: TrainSettings, images: Any, valid: MemoryImages, path: Path | None
) -> tuple[dict[str, Tensor], list[tuple[object, ...]]]:
    """The trained weights, and the records without their times."""
    loop = TrainingLoop(network, images, settings, valid=valid, stream=("t",), device="cpu", checkpoint=path)
    records = [tuple(v for k, v in vars(record).items() if k != "seconds") for record in loop.run()]
    return dict(network.state_dict()), records


def assert_same(one: tuple[dict[str, Tensor], Any], other: tuple[dict[str, Tensor], Any]) -> None:
    assert one[1] == other[1]
    assert all(torch.equal(other[0][name], value) for name, value in one[0].items())


@pytest.mark.parametrize(
    ("settings", "kills"),
    [(SETTINGS, [3]), (SETTINGS, [6]), (SETTINGS, [7]), (SETTINGS, [16, 2, 9]), (SETTINGS, [29]), (ADAM, [16, 2, 9]),
     (CHANNELS_LAST, [16, 2, 9])],
    ids=lambda value: str(value) if isinstance(value, list) else value.optimizer + " " + value.precision,
)  # fmt: skip
def test_killed_is_uninterrupted_bit_for_bit(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, settings: TrainSettings,
    kills: list[int], killed: Any,
) -> None:  # fmt: skip
    """An epoch has 6 batches; each continuation starts with a new network, as a new process would."""
    expected = run(copy.deepcopy(network), settings, images, valid, None)
    path = tmp_path / "checkpoint.pt"
    for kill in kills:
        dying, error = killed(kill)
        with pytest.raises(error):
            run(copy.deepcopy(network), settings, dying, valid, path)
    assert_same(run(copy.deepcopy(network), settings, images, valid, path), expected)
    saved = torch.load(path, weights_only=True)
    assert len(saved["records"]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"], "nothing partial is left"
    assert_same(run(network, settings, images, valid, path), expected)
    assert torch.load(path, weights_only=True)["records"] == saved["records"], "no epoch is run again"


def test_the_best_epoch_survives_the_kill(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, killed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Epoch 1 is the best; the process dies in epoch 3 (batch 20)."""
    fresh, states = copy.deepcopy(network), []

    def validate(network: nn.Module, *_: object) -> Metrics:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return Metrics(1.0, {"top1": [0.5, 0.9, 0.8, 0.7, 0.6][len(states) - 1]}, 30)

    monkeypatch.setattr(loop, "validate", validate)
    dying, error = killed(20)
    with pytest.raises(error):
        run(network, SETTINGS, dying, valid, tmp_path / "checkpoint.pt")
    run(fresh, SETTINGS, images, valid, tmp_path / "checkpoint.pt")
    assert len(states) == 5
    assert all(torch.equal(states[1][name], value) for name, value in fresh.state_dict().items())


def test_a_damaged_file_is_renamed_and_the_training_starts_again(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, killed: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "checkpoint.pt"
    expected = run(copy.deepcopy(network), SETTINGS, images, valid, None)
    dying, error = killed(20)
    with pytest.raises(error):
        run(copy.deepcopy(network), SETTINGS, dying, valid, path)
    content = path.read_bytes()[:-9]
    path.write_bytes(content)
    assert_same(run(network, SETTINGS, images, valid, path), expected)
    assert (tmp_path / "checkpoint.pt.damaged").read_bytes() == content
    assert "renamed to checkpoint.pt.damaged" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_kwargs": {"lr": 0.2}},
        {"num_epochs": 6},
        {"batch_size": 8},
        {"precision": "bf16"},
        {"penalties": (PenaltySpec(l2=0.1),)},
    ],
)
def test_the_file_of_another_training_is_not_used(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, changes: dict[str, object]
) -> None:
    first = TrainSettings(**{**vars(ADAM), "num_epochs": 2})
    other = TrainSettings(**{**vars(first), **changes})  # type: ignore[arg-type]
    expected = run(copy.deepcopy(network), other, images, valid, None)
    run(copy.deepcopy(network), first, images, valid, tmp_path / "checkpoint.pt")
    assert_same(run(network, other, images, valid, tmp_path / "checkpoint.pt"), expected)


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which an epoch takes 1 s and writing 0.12 s, every third epoch is written, and the last."""
    now, written = 0.0, []

    def save(path: Path, state: Any) -> None:
        nonlocal now
        now += 0.12
        written.append(state["epochs"])

    monkeypatch.setattr(module, "MAX_SHARE", 0.05)
    monkeypatch.setattr(module, "save_tensors", save)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "c.pt", "about")
    for epoch in range(1, 9):
        now += 1.0
        checkpoint.save({"epochs": epoch}, optional=epoch < 8)
    assert written == [1, 4, 7, 8]


@pytest.mark.parametrize(("settings", "stop"), [(SETTINGS, KeyboardInterrupt), (CHANNELS_LAST, SystemExit)])
def test_a_training_that_is_stopped_writes_the_last_finished_epoch(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, settings: TrainSettings,
    stop: type[BaseException], killed: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the middle of epoch 3 (batch 21), after epochs that were too short to be written; and it continues."""
    monkeypatch.setattr(module, "MAX_SHARE", -1.0)
    path = tmp_path / "checkpoint.pt"
    expected = run(copy.deepcopy(network), settings, images, valid, None)
    dying, error = killed(21, stop)
    with pytest.raises(error):
        run(copy.deepcopy(network), settings, dying, valid, path)
    assert len(torch.load(path, weights_only=True)["records"]) == 3
    assert_same(run(network, settings, images, valid, path), expected)


def test_a_file_that_is_cut_or_changed_anywhere_is_renamed_or_read_as_it_was(
    network: nn.Sequential, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, aside = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt.damaged"
    record = vars(EpochRecord(0, 0.1, 1.0, {"top1": 0.5}, None, {}, 90, 0.1))
    Checkpoint(path, "about").save({"network": network.state_dict(), "records": [record]})
    content, whole = path.read_bytes(), Checkpoint(path, "about").load()
    assert whole is not None
    assert whole["records"] == [record]
    steps = max(1, len(content) // 120)
    damaged = [content[:end] for end in [*range(0, len(content), steps), len(content) - 1]]
    damaged += [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(3, len(content), steps)]
    for bad in damaged:
        path.write_bytes(bad)
        caplog.clear()
        loaded = Checkpoint(path, "about").load()
        if loaded is None:
            assert "checkpoint.pt is damaged or the checkpoint of something else; renamed to" in caplog.text
            aside.unlink()
        else:
            assert len(bad) == len(content), "a file that is cut off is never read"
            assert loaded["records"] == whole["records"]
            assert all(torch.equal(loaded["network"][name], value) for name, value in whole["network"].items())
