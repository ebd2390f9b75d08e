"""Reading YAML: scalars as people mean them, lines, and everything that is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment.config.value_tree import Problem, plain, walk
from experiment.config.yaml_file import parse, read_yaml
from experiment.errors import ConfigError


def read(text: str) -> Any:
    """The plain data of a text that holds no mistake."""
    problems: list[Problem] = []
    node = parse(text, "f.yaml", problems)
    assert not problems
    assert node is not None
    return plain(node)


SCALARS: dict[str, Any] = {
    "1e-4": 1e-4, "1E5": 1e5, "5.0e-3": 5e-3, ".5": 0.5, "-.5e+2": -50.0, "3.": 3.0, "010": 10, "-7": -7, "+7": 7,
    "1_000": 1000, "0x1F": 31, "0o17": 15, "1:30": "1:30", "2026-11-22": "2026-11-22", "on": "on", "no": "no",
    "Yes": "Yes", "y": "y", "true": True, "False": False, "null": None, "~": None, "None": "None", "1.2.3": "1.2.3",
    "e5": "e5", "1e": "1e", "_1": "_1", "'12'": "12", '"1e-4"': "1e-4", "9" * 400: "9" * 400,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars(text: str, value: Any) -> None:
    result = read(f"a: {text}\n")["a"]
    assert result == value
    assert type(result) is type(value)


def test_agrees_with_pyyaml_where_the_two_mean_the_same() -> None:
    text = """
    a: {b: [1, 2.5, x, {c: null}], d: "t\\tu"}
    e: |
      two
      lines
    f: >-
      folded
      text
    g: &anchor {h: 1, i: [true, false]}
    j: *anchor
    k: {<<: *anchor, h: 2}
    l: {<<: [{m: 1, n: 1}, {m: 2, o: 2}]}
    "quoted key": 'it''s'
    ? explicit
    : 1.0e-16
    """
    assert read(text) == yaml.safe_load(text)


def test_keys_are_text() -> None:
    assert read("{1: a, on: b, null: c, 1.5: d}") == {"1": "a", "on": "b", "null": "c", "1.5": "d"}


def test_values_know_their_lines() -> None:
    node = parse("a:\n  b: 1\n\n  c:\n    - x\n    - y: 2\n", "f.yaml", [])
    assert node is not None
    lines = {path: child.place.line for path, child in walk(node)}
    assert lines[("a",)] == 1
    assert lines[("a", "b")] == 2
    assert lines[("a", "c")] == 4
    assert lines[("a", "c", 0)] == 5
    assert lines[("a", "c", 1, "y")] == 6


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "Indent with spaces"),
        ("a: b: c\n", 1, "':' inside unquoted text"),
        ("a: 'x\n", 2, "not closed"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: &x [1, *x]\n", 1, "contains an alias of itself"),
        ("a: 1\n---\nb: 2\n", 2, "Put each experiment into its own file"),
        ("a: 1\n  b: 2\n", 2, "not valid YAML"),
        ("a: \x07\n", 1, "control character"),
    ],
)
def test_broken_text_is_named_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "f.yaml", [])
    (problem,) = raised.value.problems
    assert problem.startswith(f"f.yaml:{line}: ")
    assert words in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x:\n  a: 1\n  b: 2\n  a: 3\n", "f.yaml:4: x.a: is given twice (first in line 2). Keep one."),
        ("a: !!python/object/apply:os.system [echo]\n", "f.yaml:1: a: the tag !!python/object/apply:os.system is not"),
        ("a: !!python/name:os.system\n", "f.yaml:1: a: the tag !!python/name:os.system is not allowed"),
        ("a: [!mine {b: 1}]\n", "f.yaml:1: a[0]: the tag !mine is not allowed"),
        ("a: !!binary aGk=\n", "f.yaml:1: a: the tag !!binary is not allowed"),
        ("a: !!set {x}\n", "f.yaml:1: a: the tag !!set is not allowed"),
        ("a: !!str 12\n", "f.yaml:1: a: the tag !!str is not allowed"),
        ("a: .inf\n", "f.yaml:1: a: must be a finite number. Got .inf."),
        ("a: -.INF\n", "f.yaml:1: a: must be a finite number. Got -.INF."),
        ("a: .nan\n", "f.yaml:1: a: must be a finite number. Got .nan."),
        ("a: 1e999\n", "f.yaml:1: a: must be a finite number. Got 1e999."),
        ("{[1]: a}\n", "f.yaml:1: a key must be plain text."),
        ("a: {<<: 3}\n", "f.yaml:1: a.<<: must be an alias of a mapping"),
    ],
)
def test_what_is_refused_does_not_stop_the_reading(text: str, message: str) -> None:
    problems: list[Problem] = []
    assert parse(text, "f.yaml", problems) is not None
    (problem,) = problems
    assert str(problem).startswith(message)


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    parse(f"a: !!python/object/apply:os.mkdir ['{trap}']", "f.yaml", [])
    assert not trap.exists()


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="more than 100,000 values after expanding aliases"):
        parse("\n".join(lines), "f.yaml", [])


def test_aliases_within_reason() -> None:
    assert read("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


def test_depth_bomb() -> None:
    with pytest.raises(ConfigError, match="nested more than 100 levels deep"):
        parse("[" * 5000, "f.yaml", [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "must contain a mapping"),
        (b"just text\n", "must contain a mapping"),
        (b"a: 1\nb: \xff\xfe\n", "f.yaml:2: is not UTF-8"),
        (b"\x7fELF\0\0", "binary"),
        ("a: ü".encode("utf-16"), "binary"),
        (b"a: 1\n" * 1_000_000, "larger than"),
    ],
)
def test_files_that_are_none(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as raised:
        read_yaml(path, "f.yaml", [])
    assert words in str(raised.value)


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: ü\r\n".encode())
    assert plain(read_yaml(path, "f.yaml", [])) == {"a": 1, "b": "ü"}
