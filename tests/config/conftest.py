"""Helpers of the configuration tests: parameter files in a working directory of their own."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from experiment.config import ParameterFile, load
from experiment.errors import ConfigError

GOOD = """\
network: {name: lenet5, dataset: Digits, outputSize: 10}
training:
  batchSize: 32
  numEpochs: 12
  optimizer: SGD
  optimizerKwargs: {lr: 0.1, momentum: 0.9}
experiments:
  methods: [WT, SVD]
  mode: retrain
  spacing:
    - {type: geometric, numIntervals: 3, maxVal: 0.8, minVal: 0.2}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here: Path) -> Callable[..., None]:
    """Writes parameter files below the working directory: `write(**{"a/b.yaml": text})`."""

    def write_files(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))

    return write_files


@pytest.fixture
def loaded(write: Callable[..., None]) -> Callable[..., ParameterFile]:
    """Loads a text as the file `e.yaml`, after GOOD where it says so."""

    def load_text(text: str, *overrides: str) -> ParameterFile:
        write({"e.yaml": text})
        return load("e.yaml", overrides)

    return load_text


@pytest.fixture
def problems(loaded: Callable[..., ParameterFile]) -> Callable[..., tuple[str, ...]]:
    """The problems of a text that must not load."""

    def problems_of(text: str, *overrides: str) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as raised:
            loaded(text, *overrides)
        return raised.value.problems

    return problems_of


@pytest.fixture
def good() -> str:
    """A small file without mistakes, 11 lines; `training` starts in line 2, `experiments` in line 7."""
    return GOOD
