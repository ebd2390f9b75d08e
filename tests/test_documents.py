"""README, CONTRIBUTING and the pages written by hand: their code runs and their links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiment import compress
from experiment.config import load
from experiment.errors import CompressionError
from experiment.run.disk.results_table import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_THE_SITE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "param/README.md")  # the site checks its own links


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("name", OUTSIDE_THE_SITE)
def test_links_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not ((ROOT / name).parent / target).exists()] == []


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    names = {"net": net, "x": torch.rand(1, 3, 8, 8)}
    exec(blocks("README.md", "python")[0], names)
    small = names["small"]
    assert isinstance(small, nn.Module)
    assert sum(p.numel() for p in small.parameters()) <= 0.3 * sum(p.numel() for p in net.parameters())


def test_the_parameter_file_of_the_readme_loads(tmp_path: Path) -> None:
    path = tmp_path / "readme.yaml"
    path.write_text(blocks("README.md", "yaml")[0])
    assert load(str(path)).notices == ()


def test_the_readme_marks_methods_that_need_data() -> None:
    """SNIP is named in the text, as it needs labels, too; only the settings of Quantize determine the size."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)).eval()
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    rows = re.findall(r"^\| .*\| `(\w+)`( \\\*)? \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 10
    for label, mark in rows:
        keep = None if label == "Quantize" else 0.8
        data = {"SNIP": (x, y)}.get(label, x if mark else None)
        compress(net, label, keep=keep, example=x, data=data)
        if data is not None:
            with pytest.raises(CompressionError, match="data"):
                compress(net, label, keep=keep, example=x)


@pytest.mark.parametrize(
    ("page", "block", "module", "shape"),
    [("README.md", 1, "mine_of_readme", (3, 32, 32)), ("docs/own.md", 2, "mine_of_guide", (1, 16, 16))],
)
def test_networks_datasets_and_methods_of_ones_own_run(
    page: str, block: int, module: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text(blocks(page, "python")[block].replace('"mine:', f'"{module}:'))
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module(module)
    example: Tensor = torch.rand(1, *shape)
    result = compress(mine.make(shape, 2), f"{module}:ENTRY", keep=0.5, example=example)
    assert 0.45 < result.keep_parameters <= 0.5
    image, label = mine.load(tmp_path, True)[0]
    assert int(label) >= 0
    assert image is not None


def test_every_column_of_results_csv_is_explained() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs/files-on-disk.md").read_text(), re.MULTILINE)
    assert set(COLUMNS) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
