"""The block `budget`: its forms, units, errors, and its part of a cell's key."""

import pytest

from experiment.config.schema.budget import Budget, Limit
from experiment.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "limits", "key"),
    [
        ("parameters", (Limit("parameters"),), "parameters"),
        ({"flops": 1}, (Limit("flops"),), "flops"),
        ("bytes", (Limit("bytes"),), {"bytes": 1.0}),
        (["bytes", "latency"], (Limit("bytes"), Limit("latency")), {"bytes": 1.0, "latency": 1.0}),
        (
            {"latency": "12 ms", "bytes": "400 kB", "batch": 8},
            (Limit("bytes", 400e3, True), Limit("latency", 12.0, True)),
            {"latency": "12 ms", "bytes": "400 kB", "batch": 8},
        ),
        ({"latency": "250us"}, (Limit("latency", 0.25, True),), {"latency": "250us"}),
        ({"memory": "2 MiB"}, (Limit("memory", 2.0**21, True),), {"memory": "2 MiB"}),
        ({"parameters": 62000}, (Limit("parameters", 62000.0, True),), {"parameters": 62000.0}),
        ({"parameters": "270 k", "flops": 0.5}, (Limit("parameters", 270e3, True), Limit("flops", 0.5)), None),
    ],
)
def test_forms(given: object, limits: tuple[Limit, ...], key: object) -> None:
    budget = Budget.read(given)
    assert budget.limits == limits
    assert budget.counted == (key if isinstance(key, str) else None)
    assert key is None or budget.key() == key
    assert budget.complete == any(limit.absolute or limit.value < 1 for limit in limits)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("size", "budget.size: unknown quantity. Known: parameters, flops, bytes, latency, memory, batch."),
        ({"latencey": 0.5}, "Did you mean 'latency'?"),
        (3, "budget: must be a quantity, a list of quantities, or a mapping"),
        ({"latency": 0.5, "batch": 0}, "budget.batch: must be a whole number, 1 to 65536. Got 0."),
        ({"bytes": True}, "budget.bytes: must be a share in (0, 1], or an amount"),
        ({}, "must name a quantity: parameters, flops, bytes, latency, memory"),
        ({"latency": 12}, "budget.latency: must be a share in (0, 1], or an amount with its unit (us, µs, ms, s)"),
        ({"latency": "12 kB"}, "as '12 ms'. Got '12 kB'"),
        ({"bytes": "0 kB"}, "budget.bytes"),
        ({"bytes": "1.2.3 kB"}, "budget.bytes"),
        ({"bytes": True}, "budget.bytes"),
        ({"bytes": -0.5}, "budget.bytes"),
        ({"bytes": 0.5, "batch": 2}, "budget.batch: has no effect without latency or memory"),
        ({"latency": 0.5, "batch": 0}, "budget.batch"),
        (["bytes", 3], "budget"),
    ],
)
def test_errors_say_where_and_what_is_expected(given: object, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Budget.read(given)
    assert text in str(error.value)
