"""One tree of exceptions, whose members survive the way back from a worker process."""

import copy
import pickle

import pytest

from experiment import errors
from experiment.errors import CompressionError, ConfigError, ExperimentError, InfeasibleBudget

EXAMPLES = [
    ExperimentError("what"),
    ConfigError("one problem"),
    ConfigError(["a.yaml:1: seed: must be an integer.", "a.yaml:2: mode: unknown."]),
    errors.DataError("missing"),
    CompressionError("no"),
    InfeasibleBudget(limit=90, smallest=125, original=1000, quantity="parameters"),
    errors.TrainingDiverged("NaN in epoch 3"),
    errors.StoreError("damaged"),
    errors.Damaged("cut off"),
    errors.OtherVersion("format 99"),
    errors.RuntimeFailed("no operator Foo"),
    errors.Inherited("the cell before has failed", "abc123"),
    errors.CannotWrite("no space left"),
]


def test_examples_cover_the_tree() -> None:
    classes = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert classes == {type(error) for error in EXAMPLES}
    assert all(issubclass(c, ExperimentError) for c in classes)
    assert issubclass(InfeasibleBudget, CompressionError)
    for name in (c.__name__ for c in classes):
        assert name in str(errors.__doc__)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_pickling(error: ExperimentError, protocol: int) -> None:
    for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)


def test_config_error_lists_problems() -> None:
    assert ConfigError("one").problems == ("one",)
    assert ConfigError(["one", "two"]).problems == ("one", "two")
    assert str(ConfigError(["one", "two"])) == "one\ntwo"


def test_infeasible_budget_says_what_would_do() -> None:
    error = InfeasibleBudget(limit=90_000, smallest=125_000, original=1_000_000, quantity="flops")
    assert (error.limit, error.smallest, error.original, error.quantity) == (90_000, 125_000, 1_000_000, "flops")
    assert "budget of 90,000 flops" in str(error)
    assert "125,000 (keep ratio 0.1250)" in str(error)


@pytest.mark.parametrize(
    ("quantity", "smallest", "named"),
    [("bytes", 5_432, "5.432 kB"), ("memory", 1_234_001, "1,234.001 kB"), ("latency", 1_234_561, "1.235 ms")],
)
def test_the_named_amount_is_reachable(quantity: str, smallest: int, named: str) -> None:
    error = InfeasibleBudget(limit=10, smallest=smallest, original=10**8, quantity=quantity)
    assert f"has {named} (" in str(error)


def test_the_named_keep_ratio_is_reachable() -> None:
    """Whoever asks for the keep ratio that the text names must not be refused again."""
    error = InfeasibleBudget(limit=1, smallest=12_344, original=100_000, quantity="parameters")
    named = float(str(error).split("keep ratio ")[1].split(")")[0])
    assert named * error.original >= error.smallest
