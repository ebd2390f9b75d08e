"""What an installation that is no checkout holds."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"(experiment[\w.]*)"', text.partition("packages = [")[2].partition("]")[0])
    there = [".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "experiment").rglob("__init__.py")]
    assert sorted(listed) == sorted([*there, "experiment._param"])
