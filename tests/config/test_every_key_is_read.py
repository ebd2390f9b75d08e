"""Every key of a parameter file, and every field of a registry entry, is read by the program."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import experiment
from experiment.config import keep_ratios
from experiment.config.load import ParameterFile
from experiment.config.schema import parameter_file, training
from experiment.config.schema.training import Block
from experiment.registry import DatasetEntry, MethodEntry, NetworkEntry

FOLDER = Path(experiment.__file__).parent
SCHEMAS = (parameter_file, training, keep_ratios)
READ_ELSEWHERE = {"customizations"}  # each makes a file of its own: `config.variants` reads them from the tree


@pytest.fixture(scope="module")
def attributes() -> list[ast.Attribute]:
    """All attributes that the program reads outside the schema."""
    schema = {Path(str(module.__file__)) for module in (parameter_file, training)}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(set(FOLDER.rglob("*.py")) - schema)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]


def test_every_key_is_read(attributes: list[ast.Attribute]) -> None:
    blocks = {b for m in SCHEMAS for b in vars(m).values() if isinstance(b, type) and issubclass(b, Block)}
    fields = {name for block in blocks for name in block.model_fields}
    assert len(fields) > 80
    report = "\n".join(path.read_text() for path in (FOLDER / "report").rglob("*.py"))  # reads plain values
    unread = fields - {node.attr for node in attributes} - READ_ELSEWHERE
    aliases = {name: info.alias or name for block in blocks for name, info in block.model_fields.items()}
    assert {name for name in unread if f'"{aliases[name]}"' not in report} == set()


@pytest.mark.parametrize("entry", [DatasetEntry, MethodEntry, NetworkEntry])
def test_every_field_of_an_entry_is_read(entry: type, attributes: list[ast.Attribute]) -> None:
    """By code that holds an entry: `random.random`, for instance, does not count."""
    read = {node.attr for node in attributes if "random" not in (getattr(node.value, "attr", ""), node.attr)}
    assert set(entry.__dataclass_fields__) <= read  # type: ignore[attr-defined]


def test_keys_of_torchprune_that_have_no_meaning_here_are_dropped_with_one_notice(
    loaded: Callable[..., ParameterFile], good: str
) -> None:
    text = good + (
        "blacklist: [methods]\ngenerated: 3\ncoresets: {deltaS: 1e-12, deltaBest: 1e-5, sizeOfT: 0.002}\n"
        "retraining: {startEpoch: 4, metricsTest: [{type: IoU}]}\n"
        "directories: {results: ./r, trained_networks: null, training_data: ./d, local_data: ./local}\n"
    )
    text = text.replace("mode: retrain", "mode: retrain\n  datasetsToEvaluate: [MNIST]")
    file = loaded(text.replace("batchSize: 32", "batchSize: 32\n  startEpoch: 7\n  metricsTest: [{type: TopK}]"))
    assert file.notices == (
        "ignored, not used by this program: blacklist, generated, coresets.deltaBest, coresets.sizeOfT, "
        "experiments.datasetsToEvaluate, directories.local_data, training.startEpoch, training.metricsTest, "
        "retraining.metricsTest",
    )
    p = file.parameters
    assert (p.training.start_epoch, p.retraining.start_epoch) == (0, 4)
    assert (p.coresets.delta_s, p.directories.results, p.directories.trained_networks) == (1e-12, "./r", None)
    assert "local_data" not in file.values["directories"]
