"""Import paths of the user's own, and suggestions for near misses."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiment.errors import ConfigError
from experiment.registry import is_import_path, resolve, suggestion


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"registry_user_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text("def make_network():\n    return 1\n\nnothing = None\n")
    monkeypatch.setattr(sys, "path", list(sys.path))  # resolve puts the working directory there
    monkeypatch.chdir(tmp_path)
    return name


def problem(target: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(target)
    return str(caught.value)


def test_resolve_from_the_working_directory(module: str) -> None:
    function = resolve(f"{module}:make_network")
    assert callable(function)
    assert function() == 1
    assert resolve(f"{module}:nothing") is None


def test_resolve_installed() -> None:
    assert resolve("experiment.registry:resolve") is resolve
    assert resolve("os.path:join") is __import__("os").path.join


@pytest.mark.parametrize("target", ["os.path", ":join", "os.path:", ":", ""])
def test_not_an_import_path(target: str) -> None:
    assert problem(target) == f"'{target}' is not an import path. Expected package.module:name."


def test_missing_module() -> None:
    text = problem("no_such_module_anywhere.sub:make")
    assert "cannot import 'no_such_module_anywhere.sub'" in text
    assert "Is it installed, or in the working directory?" in text


def test_missing_name_suggests(module: str) -> None:
    assert problem(f"{module}:make_netwrok") == f"module '{module}' has no 'make_netwrok'. Did you mean 'make_network'?"
    assert problem(f"{module}:zzz") == f"module '{module}' has no 'zzz'."


def test_names_are_not_inherited(module: str) -> None:
    """Only what stands in the module itself: no attributes of module objects, no dots."""
    assert "has no '__class__'" in problem(f"{module}:__class__")
    assert "has no 'make_network.__name__'" in problem(f"{module}:make_network.__name__")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_module_that_fails_on_import(module: str, source: str, said: str) -> None:
    Path(f"{module}_broken.py").write_text(source)
    text = problem(f"{module}_broken:make")
    assert said in text
    assert f"{module}_broken" in text


def test_relative_path_is_refused() -> None:
    assert ".networks" in problem(".networks:make")


def test_is_import_path() -> None:
    assert is_import_path("package.module:make")
    assert not is_import_path("resnet20")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ADLS", " Did you mean 'ALDS'?"),
        ("alds", " Did you mean 'ALDS'?"),
        ("svd-enrgy", " Did you mean 'SVD-Energy'?"),
        ("quantize", ""),
        ("", ""),
    ],
)
def test_suggestion(name: str, expected: str) -> None:
    assert suggestion(name, ["SVD", "SVD-Energy", "ALDS"]) == expected


def test_suggestion_without_known_names() -> None:
    assert suggestion("x", []) == ""


def test_no_torch() -> None:
    code = "import sys, experiment.registry, experiment.errors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1], check=True)
