"""Training that is killed and taken up again ends as if nothing had been."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment.datasets.in_memory import MemoryImages
from experiment.training import checkpoint as module
from experiment.training import loop
from experiment.training.loop import EpochRecord, Metrics, SchedulerSpec, TrainSettings, train

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


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of milliseconds are not worth a file otherwise."""
    monkeypatch.setattr(module, "MAX_SHARE", float("inf"))


def values_of(network: nn.Module, records: list[EpochRecord]) -> tuple[dict[str, Tensor], list[tuple[object, ...]]]:
    timeless = [tuple(v for k, v in vars(record).items() if k != "seconds") for record in records]
    return dict(network.state_dict()), timeless


def run(
    network: nn.Module, settings: TrainSettings, images: MemoryImages, valid: MemoryImages, path: Path | None,
    kill_after: int | None = None, rewind_to: tuple[int, Path] | None = None,
) -> list[EpochRecord]:  # fmt: skip
    batches = 0

    def on_batch(_: int) -> None:
        nonlocal batches
        batches += 1
        if batches == kill_after:
            raise Killed

    return train(
        network, images, settings, valid=valid, stream=("t",), device="cpu", checkpoint=path, on_batch=on_batch,
        rewind_to=rewind_to,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [SETTINGS, ADAM, CHANNELS_LAST], ids=["SGD", "AdamW", "bf16 channels-last"])
@pytest.mark.parametrize("kills", [[3], [6], [7], [16, 2, 9], [29]])
def test_killed_is_uninterrupted_bit_for_bit(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path,
    settings: TrainSettings, kills: list[int],
) -> None:  # fmt: skip
    """An epoch has 6 batches; every life begins with a fresh network, as a new process would."""
    whole = copy.deepcopy(network)
    expected = values_of(whole, run(whole, settings, images, valid, None))
    path = tmp_path / "checkpoint.pt"
    for kill in kills:
        with pytest.raises(Killed):
            run(copy.deepcopy(network), settings, images, valid, path, kill)
    last = copy.deepcopy(network)
    state, records = values_of(last, run(last, settings, images, valid, path))
    assert records == expected[1]
    assert all(torch.equal(state[name], value) for name, value in expected[0].items())


def test_the_best_epoch_survives_the_kill(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 is the best; the process dies in epoch 3 (batch 20)."""
    fresh, states = copy.deepcopy(network), []

    def evaluate(network: nn.Module, *_: object, **__: object) -> Metrics:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return Metrics(1.0, [0.5, 0.9, 0.8, 0.7, 0.6][len(states) - 1], 1.0, 30)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.raises(Killed):
        run(network, SETTINGS, images, valid, tmp_path / "checkpoint.pt", 20)
    run(fresh, SETTINGS, images, valid, tmp_path / "checkpoint.pt")
    assert len(states) == 5
    assert all(torch.equal(states[1][name], value) for name, value in fresh.state_dict().items())


def test_a_finished_training_is_not_run_again(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    again = copy.deepcopy(network)
    records = run(network, SETTINGS, images, valid, path)
    told: list[EpochRecord] = []
    back = train(
        again, images, SETTINGS, valid=valid, stream=("t",), device="cpu", checkpoint=path, on_epoch=told.append
    )
    assert back == records
    assert told == []
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items())


def damage_cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_flip(content: bytes) -> bytes:
    """One bit of the weights: torch.load alone would not notice."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, lambda _: b"", lambda _: b"hello" * 99])
def test_damaged_file_is_set_aside(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, damage: object,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole, path = copy.deepcopy(network), tmp_path / "checkpoint.pt"
    expected = values_of(whole, run(whole, SETTINGS, images, valid, None))
    with pytest.raises(Killed):
        run(copy.deepcopy(network), SETTINGS, images, valid, path, 20)
    content = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(content)
    state, records = values_of(network, run(network, SETTINGS, images, valid, path))
    assert records == expected[1]
    assert all(torch.equal(state[name], value) for name, value in expected[0].items())
    assert (tmp_path / "checkpoint.pt.damaged").read_bytes() == content
    assert "set aside" in caplog.text


@pytest.mark.parametrize(
    "changes", [{"optimizer_kwargs": {"lr": 0.2}}, {"num_epochs": 6}, {"batch_size": 8}, {"precision": "bf16"}]
)
def test_file_of_another_training_is_not_taken_up(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, changes: dict[str, object]
) -> None:
    other = TrainSettings(**{**vars(ADAM), **changes})  # type: ignore[arg-type]
    whole, path = copy.deepcopy(network), tmp_path / "checkpoint.pt"
    expected = values_of(whole, run(whole, other, images, valid, None))
    run(copy.deepcopy(network), ADAM, images, valid, path)
    state, records = values_of(network, run(network, other, images, valid, path))
    assert records == expected[1]
    assert all(torch.equal(state[name], value) for name, value in expected[0].items())


def test_file_can_be_loaded_without_pickle(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path
) -> None:
    run(network, SETTINGS, images, valid, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["format"] == module.FORMAT
    assert len(saved["records"]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]  # no half file beside it


def test_a_lost_rewind_file_is_made_again(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path
) -> None:
    rewind = (2, tmp_path / "rewind.pt")
    with pytest.raises(Killed):
        run(copy.deepcopy(network), ADAM, images, valid, tmp_path / "c.pt", 20, rewind)
    before = torch.load(rewind[1], weights_only=True)
    rewind[1].unlink()
    assert len(run(network, ADAM, images, valid, tmp_path / "c.pt", None, rewind)) == 5
    after = torch.load(rewind[1], weights_only=True)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_writing_takes_a_small_share_of_the_time(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock on which an epoch takes 1 s and writing 0.12 s, every third epoch is written, and the last."""
    now, written = 0.0, []

    def save(path: Path, state: object) -> None:
        nonlocal now
        now += 0.12
        written.append(len(state["records"]))  # type: ignore[index]

    def on_epoch(_: EpochRecord) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(module, "MAX_SHARE", 0.05)
    monkeypatch.setattr(module, "save_whole", save)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    settings = TrainSettings(**{**vars(ADAM), "num_epochs": 8})
    train(
        network, images, settings, valid=None, stream=(), device="cpu", checkpoint=tmp_path / "c.pt", on_epoch=on_epoch
    )
    assert written == [1, 4, 7, 8]


@pytest.mark.parametrize("settings", [SETTINGS, ADAM, CHANNELS_LAST], ids=["SGD", "AdamW", "bf16 channels-last"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_asked_to_stop_it_writes_the_last_finished_epoch(
    network: nn.Sequential, images: MemoryImages, valid: MemoryImages, tmp_path: Path,
    settings: TrainSettings, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the middle of epoch 3 (batch 21), no epoch being worth a file until then; and it goes on, bit for bit."""
    monkeypatch.setattr(module, "MAX_SHARE", -1.0)
    whole, path, batches = copy.deepcopy(network), tmp_path / "checkpoint.pt", iter(range(1000))
    expected = values_of(whole, run(whole, settings, images, valid, None))

    def on_batch(_: int) -> None:
        if next(batches) == 20:
            raise stop

    with pytest.raises(stop):
        train(copy.deepcopy(network), images, settings, valid=valid, stream=("t",), device="cpu", checkpoint=path,
              on_batch=on_batch)  # fmt: skip
    assert len(torch.load(path, weights_only=True)["records"]) == 3
    state, records = values_of(network, run(network, settings, images, valid, path))
    assert records == expected[1]
    assert all(torch.equal(state[name], value) for name, value in expected[0].items())


def taken_up(network: nn.Module, path: Path) -> tuple[int, dict[str, Tensor]]:
    """How many epochs of ADAM's training a file holds, and the weights that it leaves."""
    network = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    saved = module.Checkpoint(path, network, optimizer, torch.amp.GradScaler("cpu", enabled=False), ADAM, ("t",), 90)
    return len(saved.load().records), dict(network.state_dict())


@pytest.fixture
def written(network: nn.Sequential, tmp_path: Path) -> Path:
    """The file of a training of two epochs that trained nothing, which does not matter here."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    torch.autograd.backward(network(torch.ones(2, 1, 8, 8)).sum())
    optimizer.step()
    saved = module.Checkpoint(
        tmp_path / "checkpoint.pt", network, optimizer, torch.amp.GradScaler("cpu", enabled=False), ADAM, ("t",), 90
    )
    records = [EpochRecord(epoch, 0.1, 1.0, 0.5, None, None, None, 90, 0.1) for epoch in range(2)]
    saved.save(module.Progress(records), last=True)
    return tmp_path / "checkpoint.pt"


def test_a_file_cut_or_changed_anywhere_is_set_aside_or_what_it_was(
    network: nn.Sequential, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, aside = written.read_bytes(), written.with_name("checkpoint.pt.damaged")
    fresh = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    other = copy.deepcopy(network)
    other.load_state_dict(fresh)
    whole = taken_up(other, written)
    assert whole[0] == 2
    assert not all(torch.equal(value, fresh[name]) for name, value in whole[1].items())
    steps = max(1, len(content) // 120)
    damaged = [content[:end] for end in [*range(0, len(content), steps), len(content) - 1]]
    damaged += [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(3, len(content), steps)]
    for bad in damaged:
        written.write_bytes(bad)
        caplog.clear()
        epochs, state = taken_up(other, written)
        assert epochs in (0, 2)
        assert all(torch.equal(value, (whole[1] if epochs else fresh)[name]) for name, value in state.items())
        if epochs == 0:
            assert "checkpoint.pt is damaged or of another training: set aside as" in caplog.text
            aside.unlink()
        else:
            assert len(bad) == len(content), "what is cut off is never taken up"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("records", 7), ("records", [{"epoch": 1}]), ("records", [[]]), ("network", {}), ("network", None),
        ("optimizer", {}), ("optimizer", {"state": {}, "param_groups": [3]}), ("scaler", 5), ("best_state", ...),
        ("format", 2),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_content_with_the_right_fingerprint_changes_nothing(
    network: nn.Sequential, written: Path, key: str, value: object
) -> None:
    saved = torch.load(written, weights_only=True)
    saved[key] = value
    if value is ...:
        del saved[key]
    torch.save(saved, written)
    before = copy.deepcopy(dict(network.state_dict()))
    other = copy.deepcopy(network)
    epochs, state = taken_up(other, written)
    if epochs == 0:
        assert all(torch.equal(value, before[name]) for name, value in state.items())
        assert written.with_name("checkpoint.pt.damaged").exists()
    else:
        assert key == "scaler", "one that is off has no state to load"
