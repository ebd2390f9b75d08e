"""What tests of scripts share: synthetic experiments, and running a script as a user does."""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def synthetic() -> Any:
    path = ROOT / "tests" / "report" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a script from an empty working directory; returns what it printed, or raises SystemExit."""
    monkeypatch.chdir(tmp_path)

    def run_script(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(ROOT / "script" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.fixture
def refused(run: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a script that ends with exit status 2; returns its error."""

    def run_script(name: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            run(name, *arguments)
        assert end.value.code == 2
        return capsys.readouterr().err

    return run_script
