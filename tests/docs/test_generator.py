"""The generated pages of the documentation leave nothing out, and read docstrings and schemas correctly."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from generator import docstrings, expanded
from generator.markdown import escaped, type_in_words
from generator.methods import anchor, setting_texts
from generator.parameter_file import EXAMPLES

import experiment
from experiment.config import Parameters, load
from experiment.datasets import DATASETS
from experiment.methods import METHODS
from experiment.networks import NETWORKS
from experiment.tasks import TASKS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def method_pages() -> dict[str, str]:
    return {path.stem: expanded(path.read_text(encoding="utf-8")) for path in (DOCS / "methods").glob("*.md")}


def test_every_method_has_a_section_on_one_page(method_pages: dict[str, str]) -> None:
    sections = {
        label: sum(f"({anchor(entry)})=\n## {label}" in page for page in method_pages.values())
        for label, entry in METHODS.items()
    }
    assert sections == dict.fromkeys(METHODS, 1)


def test_every_key_of_a_parameter_file_is_described() -> None:
    page = expanded(read("parameter-file.md"))
    schema = Parameters.model_json_schema(by_alias=True)
    keys = {key for block in (schema, *schema["$defs"].values()) for key in block.get("properties", {})}
    assert [key for key in sorted(keys) if f".{key}`\n: " not in page and f"`{key}`\n: " not in page] == []


def test_a_key_is_shown_with_path_type_range_default_and_example() -> None:
    page = expanded(read("parameter-file.md"))
    _, _, key = page.partition("`experiments.search.accuracyLoss`\n: ")
    facts = key.split("\n\n")[1].strip()
    assert facts == "*number, at least 0, below 1.* Default: `0.005`. Example: `accuracyLoss: 0.005`"
    assert "`training.batchSize`\n: " in page
    assert "*whole number, at least 1.* Required. Example: `batchSize: 128`" in page


def test_examples_are_valid_parameter_files(tmp_path: Path) -> None:
    for i, document in enumerate(yaml.safe_load_all(EXAMPLES.read_text(encoding="utf-8"))):
        file = tmp_path / f"example{i}.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        assert load(file).variants


def test_every_public_name_is_documented_once() -> None:
    page = expanded(read("api.md"))
    directives = [line.partition(":: ")[2] for line in page.splitlines() if line.startswith(".. auto")]
    assert sorted(directives) == sorted(experiment.__all__)


def test_every_network_dataset_and_task_is_listed() -> None:
    page = expanded(read("networks-and-datasets.md"))
    assert [name for name in [*NETWORKS, *DATASETS] if f"| `{name}` |" not in page] == []
    tasks = expanded(read("tasks.md"))
    assert [name for name in TASKS if f"| `{name}` |" not in tasks] == []
    assert "| `mnist_fc` |" in page
    assert "`dropout` (0.5)" in page
    assert "| `CIFAR10` | 10 | 3 x 32 x 32 | 50,000 |" in page


def test_what_a_method_needs_is_found_by_running_it(method_pages: dict[str, str]) -> None:
    page = method_pages["masks"]
    needs = {
        row.split(" | ")[0].strip("| []`").partition("`")[0]: row for row in page.splitlines() if "](#method-" in row
    }
    assert needs["WT"].endswith("| no data |")
    assert needs["SiPP"].endswith("| calibration data |")
    assert needs["SNIP"].endswith("| calibration data with labels |")


@pytest.mark.parametrize("label", METHODS)
def test_every_setting_has_a_meaning(label: str) -> None:
    settings = METHODS[label].settings
    described = setting_texts(settings)
    assert [field.name for field in fields(settings) if not described.get(field.name)] == []


def test_a_marker_is_a_line_of_its_own() -> None:
    assert expanded("a\n<!-- generate: datasets -->\nb").startswith("a\n| name | classes |")
    assert expanded("`<!-- generate: datasets -->`") == "`<!-- generate: datasets -->`"


def test_a_docstring_is_split_into_text_and_sections() -> None:
    found = docstrings.parse("""Keeps the largest weights.

    The score of a weight is

        s = |w|

    where w is the weight.

    Args:
        keep, share: what stays,
            a fraction.
    Returns: the network,
        unchanged.

    Source: Someone 2020. Differs: no
        bias.
    """)
    assert found.summary == "Keeps the largest weights."
    assert list(docstrings.blocks(found.text))[1:] == [
        (False, "The score of a weight is"), (True, "s = |w|"), (False, "where w is the weight.")
    ]  # fmt: skip
    assert found.entries("Args") == dict.fromkeys(("keep", "share"), "what stays, a fraction.")
    assert found.sections["Source"] == "Someone 2020."
    assert found.sections["Differs"].split() == ["no", "bias."]


def test_docstrings_become_google_style() -> None:
    lines = ["Load it.", "", "    load(1)", "", "Returns: a network.", "Raises: OSError: it is gone."]
    expected = "Load it.\n\n::\n\n    load(1)\n\nReturns:\n    a network.\n\nRaises:\n    OSError: it is gone.\n"
    assert "\n".join(docstrings.google_style(lines)) == expected


def test_plain_text_is_escaped_and_code_is_not() -> None:
    assert escaped("W_NM <= `a_b` * 2") == r"W\_NM \<= `a_b` \* 2"
    assert escaped("see https://arxiv.org/abs/1_2, p. 3") == "see <https://arxiv.org/abs/1_2>, p. 3"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "whole number, at least 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number, above 0, at most 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"enum": ["a", "b", "c"]}, "`a`, `b` or `c`"),
        ({"type": "array", "items": {"$ref": "#/$defs/Block"}}, "list of: there"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "mapping from names to: text"),
        ({}, "any value"),
    ],
)
def test_types_are_put_into_words(schema: dict[str, object], words: str) -> None:
    assert type_in_words(schema, {"Block": "there"}) == words
