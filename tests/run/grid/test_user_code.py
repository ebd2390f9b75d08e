"""The user's own code is part of what a network, a dataset or a method is: all of it, as it lies on the disk."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiment.config import load
from experiment.errors import ConfigError
from experiment.methods import METHODS
from experiment.methods.configure import MethodSpec, configure
from experiment.registry import MethodEntry, resolve
from experiment.run.grid.hardware import Machine
from experiment.run.grid.keys import method_key, named
from experiment.run.grid.plan import plan_experiment
from experiment.user_code import code_in, source_hash, sources_of

PACKAGE = {  # which of these files `pack.net` depends on: those that say so
    "pack/__init__.py": "from . import base  # counts\n",
    "pack/base.py": "import os, json  # counts\n",
    "pack/net.py": "from .util import WIDTH  # counts\nfrom .sub.deep import D\nimport pack.absolute\nimport torch\n",
    "pack/util.py": "def f():\n    from pack import late  # counts\nWIDTH = 1\n",
    "pack/late.py": "from ._name import *  # counts\n",
    "pack/_name.py": "NAME = 1  # counts\n",
    "pack/sub/__init__.py": "# counts\n",
    "pack/sub/deep.py": "from ..absolute import A  # counts\nfrom . import sibling\nfrom ... import nothing\nD = 1\n",
    "pack/sub/sibling.py": "from broken_beside import x  # counts\n",
    "pack/absolute.py": "import pack.net, beside  # counts; a circle\nA = 1\n",
    "pack/other.py": "OTHER = 1\n",
    "beside.py": "BESIDE = 1  # counts\n",
    "broken_beside.py": "def (  # counts\n",
    "stranger.py": "STRANGER = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_imported_counts(package: Path) -> None:
    before = source_hash("pack.net")
    for name, text in PACKAGE.items():
        (package / name).write_text(text + "# changed\n")
        assert (source_hash("pack.net") != before) == ("# counts" in text), name
        (package / name).write_text(text)
        assert source_hash("pack.net") == before
    assert "pack" not in sys.modules  # nothing of it was run
    (package / "pack/sub/beside.py").write_text("")
    assert source_hash("pack.net") == before
    (package / "pack/sub/nothing.py").write_text("")
    assert source_hash("pack.net") == before


def test_of_installed_packages_the_named_module_counts_alone() -> None:
    assert list(sources_of("torchvision.models.resnet")) == ["torchvision.models.resnet"]
    assert list(sources_of("experiment.methods.masks.magnitude")) == ["experiment.methods.masks.magnitude"]


@pytest.mark.parametrize("name", ["nowhere", "pack.nowhere", "pack.net.deeper", "nowhere.net", ".pack", ""])
def test_modules_that_are_not_there(package: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="Is it installed, or in the working directory"):
        source_hash(name)


def test_what_runs_is_what_keys_were_made_of(package: Path, write: Any, small: dict[str, Any]) -> None:
    (package / "runs").mkdir()
    for name, text in {"__init__": "", "a": "from runs.b import B\n", "b": "B = 1\n", "c": "C = object()\n"}.items():
        (package / f"runs/{name}.py").write_text(text)
    small["network"]["name"] = "runs.a:B"
    file = load(write(small))
    plan_experiment(file, Machine("cpu"))
    assert resolve("runs.a:B") == 1
    kept = resolve("runs.c:C")
    (package / "runs/b.py").write_text("B = 1234567\n")
    assert resolve("runs.a:B") == 1  # as long as the keys are those of the code as it was
    plan_experiment(file, Machine("cpu"))
    assert resolve("runs.a:B") == 1234567
    assert resolve("runs.c:C") is kept
    for name in [name for name in sys.modules if name.partition(".")[0] == "runs"]:
        del sys.modules[name]


def key_of(method: str) -> dict[str, object]:
    entry = METHODS["TorchPrune"]
    return method_key(MethodSpec("TorchPrune", "TorchPrune", entry, configure(entry, {"method": method}).settings))


def test_changed_code_is_another_method(package: Path) -> None:
    first = key_of("stranger:Mine")
    assert first["sources"] == {"stranger": source_hash("stranger")}
    (package / "stranger.py").write_text("Mine = 2\n")
    assert key_of("stranger:Mine") != first


def test_code_of_torch_needs_no_hash() -> None:
    assert "sources" not in key_of("torch.nn.utils.prune:RandomUnstructured")
    assert key_of("torch.nn.utils.prune:L1Unstructured")["settings"] == {}


@dataclass(frozen=True)
class OwnSettings:
    schedule: str = "constant"


@pytest.mark.parametrize(
    "text", ["linear:0.1", "linear:decay", "a: b", ":", "C:/x", "http://x", "1:2", "stranger:0.1", "no_module.x:y"]
)
def test_a_text_with_a_colon_is_no_code(package: Path, text: str) -> None:
    entry = MethodEntry("Own", OwnSettings, "experiment.methods.masks.magnitude:wt", "weight")
    key = method_key(MethodSpec("Own", "Own", entry, OwnSettings(text)))
    assert key["settings"] == {"schedule": text}
    assert "sources" not in key
    assert list(code_in({"a": [text, {"b": text}]})) == []
    assert named("lenet5", 1, {"x": text}) == {"name": "lenet5", "version": 1, "settings": {"x": text}}


def test_code_that_settings_name_counts_at_any_depth(package: Path) -> None:
    assert list(code_in({"a": ["stranger:f", {"b": ("x", "pack.net:g")}], "c": "torch:nn", "d": 3})) == [
        "stranger", "pack.net",
    ]  # fmt: skip
    assert set(named("lenet5", 1, {"x": ["stranger:f"]})["sources"]) == {"stranger"}


def test_code_that_a_setting_must_name_and_that_is_not_there(write: Any, small: dict[str, Any]) -> None:
    wrong = {"name": "TorchPrune", "settings": {"method": "nowhere:X"}}
    within = {"name": "TorchPrune", "settings": {"method": "L1Unstructured"}}
    compose = {"name": "Compose", "settings": {"schemes": [within, "Quantize"]}}
    small["experiments"]["methods"] = [wrong, compose]
    file = load(write(small))
    with pytest.raises(ConfigError) as caught:
        plan_experiment(file, Machine("cpu"))
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        "experiments.methods[0].settings.method: cannot find the module 'nowhere'. Is it installed, or in the working "
        "directory?",
        "experiments.methods[1].settings.schemes[0].settings.method: 'L1Unstructured' is not an import path. Expected "
        "package.module:name.",
    ]


@pytest.mark.parametrize("name", ["collections:OrderedDict", "os.path:join"])
def test_what_is_no_method_entry_is_named(write: Any, small: dict[str, Any], name: str) -> None:
    small["experiments"]["methods"] = ["WT", name]
    with pytest.raises(
        ConfigError, match=rf"methods\[1\]: '{name}' must be an experiment.registry.MethodEntry.* Got (a|the class) "
    ):
        plan_experiment(load(write(small)), Machine("cpu"))


def test_the_installed_command_finds_modules_of_the_working_directory(
    package: Path, write: Any, small: dict[str, Any]
) -> None:
    small["network"]["name"] = "pack.net:make"
    small["experiments"]["methods"] = ["WT"]
    path = os.path.relpath(write(small), package)
    command = Path(sys.executable).with_name("experiment")
    code = f"import sys; sys.path.remove(''); sys.argv = ['{command}', '{path}', '--plan']; "
    code += "from experiment.main import run; run()"  # as the installed script does
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", code], cwd=package, env=env, capture_output=True, text=True)
    assert "unavailable" not in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
