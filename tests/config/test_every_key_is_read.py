"""Every key of a parameter file is read by somebody, or the file that has it is told that nobody does."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import experiment
from experiment.config.load import WITHOUT_EFFECT, ParameterFile
from experiment.config.schema import lc, parameter_file, search, training
from experiment.config.schema.block import Block
from experiment.registry import DatasetEntry, MethodEntry, NetworkEntry

FOLDER = Path(experiment.__file__).parent
SCHEMAS = (parameter_file, training, lc, search)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """All of the program but the schema."""
    homes = {Path(str(module.__file__)) for module in SCHEMAS}
    for path in sorted(set(FOLDER.rglob("*.py")) - homes):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def readers() -> tuple[set[str], set[str]]:
    """Attributes that are read anywhere, and texts that whoever reads raw values may look up."""
    attributes, texts = set(), set()
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                attributes.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "report" in path.parts:
                texts.add(node.value)
    return attributes, texts


def test_every_key_is_read_or_told_to_have_no_effect() -> None:
    attributes, texts = readers()
    blocks = {b for m in SCHEMAS for b in vars(m).values() if isinstance(b, type) and issubclass(b, Block)}
    fields = {(info.alias or name, name) for block in blocks for name, info in block.model_fields.items()}
    assert len(fields) > 80
    unread = {alias for alias, name in fields if name not in attributes and alias not in texts}
    structure = {"customizations"}  # each is a file of its own: `config.sweep` reads them from the tree
    by_value = {"metricsTest"}
    assert unread - structure - by_value <= {key[-1] for key in WITHOUT_EFFECT}
    assert "local_data" in unread


@pytest.mark.parametrize("entry", [DatasetEntry, MethodEntry, NetworkEntry])
def test_every_field_of_an_entry_is_read(entry: type) -> None:
    """By code that has an entry in its hands: `random.random`, say, is none."""
    read = {
        node.attr
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and "random" not in (getattr(node.value, "attr", ""), node.attr)
    }
    assert set(entry.__dataclass_fields__) <= read  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("numEpochs: 12", "numEpochs: 12\n  metricsTest: [{type: TopK, kwargs: {topk: 3}}]", ["training.metricsTest"]),
        ("numEpochs: 12", "numEpochs: 12\n  metricsTest: [{type: TopK, kwargs: {topk: 5}}, {type: TopK}]", []),
    ],
)
def test_metrics_that_no_test_reports_are_told(
    loaded: Callable[[str], ParameterFile], good: str, old: str, new: str, told: list[str]
) -> None:
    expected = (f"accepted, has no effect here: {', '.join(told)}",) if told else ()
    assert loaded(good.replace(old, new)).notices == expected
