"""Code of the user's that a method's settings name is part of what the method is."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment.methods import METHODS
from experiment.methods.configure import make_settings
from experiment.run.keys import source_hash
from experiment.run.names import MethodSpec, method_key


def key_of(method: str) -> dict[str, object]:
    entry = METHODS["TorchPrune"]
    return method_key(MethodSpec("TorchPrune", "TorchPrune", entry, make_settings(entry, {"method": method})))


def test_changed_code_is_another_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_masks.py").write_text("Mine = 1\n")
    first = key_of("my_masks:Mine")
    assert first["sources"] == {"method": source_hash("my_masks")}
    source_hash.cache_clear()
    (tmp_path / "my_masks.py").write_text("Mine = 2\n")
    assert key_of("my_masks:Mine") != first


def test_code_of_torch_needs_no_hash() -> None:
    assert "sources" not in key_of("torch.nn.utils.prune:RandomUnstructured")
    assert key_of("torch.nn.utils.prune:L1Unstructured")["settings"] == {}
