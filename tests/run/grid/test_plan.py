"""The grid and its keys: what changes an outcome changes a key, and nothing else does."""

from pathlib import Path
from typing import Any

import pytest

from experiment.config import load
from experiment.errors import ConfigError
from experiment.run.grid.hardware import Machine
from experiment.run.grid.plan import ExperimentPlan, plan_experiment


def grid(path: Path, *overrides: str) -> ExperimentPlan:
    return plan_experiment(load(path, overrides), Machine("cpu"))


def keys(plan: ExperimentPlan) -> list[str]:
    return [cell.key for cell in plan.cells]


def test_rows_stand_in_grid_order(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"numNets": 2, "numRepetitions": 2}
    cells = grid(write(small)).cells
    assert [(c.net, c.repetition, c.method, c.keep) for c in cells] == [
        row
        for net in (0, 1)
        for row in [
            (net, 0, "Reference", 1.0),
            *((net, r, m, k) for r in (0, 1) for m in ("WT", "SVD") for k in (0.5, 0.1)),
        ]
    ]
    assert len(set(keys(grid(write(small))))) == len(cells)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("bytes", ["keep 0.5", "keep 0.1"]),
        ("{latency: 12 ms}", ["keep 0.5 of the budget", "keep 0.1 of the budget"]),
    ],
)
def test_sizes_name_what_keep_ratios_are_shares_of(
    budget: str, said: list[str], write: Any, small: dict[str, Any]
) -> None:
    cells = grid(write(small), f"experiments.budget={budget}").cells
    assert [cell.size for cell in cells if cell.method == "SVD"] == said


def test_the_size_within_a_budget_without_keep_ratios_is_not_called_one(write: Any, small: dict[str, Any]) -> None:
    del small["experiments"]["spacing"]
    cells = grid(write(small), "experiments.budget={bytes: 0.5}").cells
    assert {cell.size for cell in cells if cell.method == "SVD"} == {"within the budget"}


@pytest.mark.parametrize(
    ("block", "change"),
    [
        ("training", {"optimizerKwargs": {"lr": 0.1, "momentum": 0.9}}),
        ("training", {"transformsTrain": []}),
        ("training", {"batchSize": 32}),
        ("training", {"numEpochs": 3}),
        ("network", {"name": "lenet5"}),
        ("", {"seed": 1}),
        ("", {"threads": 2}),
    ],
)
def test_what_changes_the_outcome_changes_every_key(write: Any, small: dict[str, Any], block: str, change: Any) -> None:
    before = keys(grid(write(small)))
    (small[block] if block else small).update(change)
    assert not set(before) & set(keys(grid(write(small))))


def test_retraining_changes_the_cells_but_not_the_reference(write: Any, small: dict[str, Any]) -> None:
    before = grid(write(small))
    small["retraining"]["optimizerKwargs"] = {"lr": 0.01}
    after = grid(write(small))
    assert after.references[0].reference.key == before.references[0].reference.key
    assert after.cells[0].key == before.cells[0].key
    assert not {c.key for c in before.cells[1:]} & {c.key for c in after.cells[1:]}


@pytest.mark.parametrize(
    ("block", "change"),
    [
        ("training", {"testBatchSize": 500}),
        ("training", {"loss": "CrossEntropyLoss", "lossKwargs": {}}),
        ("experiments", {"plotting": {"minVal": 0.1, "maxVal": 0.9}}),
        ("experiments", {"budget": "parameters", "numRepetitions": 1}),
        ("", {"resources": {"cpus": 4, "gpus": 0.25}}),
        ("", {"network_names": {"WT": "magnitude"}, "description": "words", "directories": {"results": "elsewhere"}}),
    ],
)
def test_what_only_shows_or_repeats_a_default_changes_no_key(
    write: Any, small: dict[str, Any], block: str, change: Any
) -> None:
    before = keys(grid(write(small)))
    (small[block] if block else small).update(change)
    assert keys(grid(write(small))) == before


def test_growing_the_grid_keeps_the_old_cells(write: Any, small: dict[str, Any]) -> None:
    before = keys(grid(write(small)))
    small["experiments"] |= {"methods": ["FT", "WT", "SVD"], "numNets": 2, "numRepetitions": 2}
    small["experiments"]["spacing"][0]["values"] = [0.5, 0.3, 0.1]
    after = keys(grid(write(small)))
    assert set(before) < set(after)
    assert len(after) == 2 * (1 + 2 * 3 * 3)


def test_a_label_is_no_part_of_a_key(write: Any, small: dict[str, Any]) -> None:
    before = keys(grid(write(small)))
    small["experiments"]["methods"] = [{"name": "ThresNet", "label": "magnitude"}, "SVDNet"]
    after = grid(write(small))
    assert keys(after) == before
    assert [c.label for c in after.cells] == ["Reference", "magnitude", "magnitude", "SVD", "SVD"]


def test_recalibration_is_part_of_a_key_only_where_it_is_asked_for(write: Any, small: dict[str, Any]) -> None:
    before = keys(grid(write(small)))
    small["experiments"]["methods"] = ["WT", {"name": "SVD", "recalibrate": False}]
    assert keys(grid(write(small))) == before
    small["experiments"]["methods"] = ["WT", "SVD", {"name": "SVD", "label": "SVD + BN", "recalibrate": True}]
    after = keys(grid(write(small)))
    assert after[: len(before)] == before
    assert len(set(after)) == len(before) + 2


def test_recalibration_without_effect_or_a_label_of_its_own_is_refused(write: Any, small: dict[str, Any]) -> None:
    methods = [{"name": "Fake", "recalibrate": True}, "SVD", {"name": "SVD", "recalibrate": True}]
    small["experiments"]["methods"] = methods
    with pytest.raises(ConfigError) as caught:
        grid(write(small))
    assert len(caught.value.problems) == 2
    assert "methods[0].recalibrate: recalibrate has no effect: Fake does" in caught.value.problems[0]
    assert "second method with the label 'SVD'" in caught.value.problems[1]


def test_all_that_is_wrong_with_settings_comes_at_once_with_its_place(write: Any, small: dict[str, Any]) -> None:
    small["experiments"]["methods"] = [
        {"name": "ALDS", "settings": {"groups": 2, "error": "foo", "foldings": [0, 8]}},
        {"name": "KLDS", "settings": {"refit": 3, "foldings": []}},
        {"name": "SVD", "settings": {"folding": 8, "groups": 0.5}},
    ]
    path = write(small)
    lines = path.read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        grid(path)
    problems = [problem.split(": ", 1) for problem in caught.value.problems]
    assert [text.removeprefix("experiments.methods") for _, text in problems] == [
        "[0].settings.groups: ALDS has no such setting. It has error, foldings, ignore, layers, min_group_width, "
        "randomised_above, round_to.",
        "[0].settings.foldings[1]: must be at most 7. Got 8.",
        "[0].settings.error: must be one of reference, exact, bound. Got 'foo'.",
        "[1].settings.foldings: must not be empty. Got a list of 0.",
        "[1].settings.refit: must be true or false. Got 3.",
        "[2].settings.groups: must be a whole number. Got 0.5.",
        "[2].settings.folding: must be at most 7. Got 8.",
    ]
    assert "error: foo" in lines[int(problems[2][0].rpartition(":")[2]) - 1]  # the setting's own line, not its method's


def test_a_cascade_cell_depends_on_all_before_it(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"mode": "cascade", "methods": ["WT"]}
    small["experiments"]["spacing"][0]["values"] = [0.8, 0.5, 0.1]
    before = grid(write(small)).cells
    small["experiments"]["spacing"][0]["values"] = [0.8, 0.4, 0.1]
    after = grid(write(small)).cells
    assert [a.key == b.key for a, b in zip(after, before, strict=True)] == [True, True, False, False]


def test_compress_only_steps_accumulate_in_one_shot_mode(write: Any, small: dict[str, Any]) -> None:
    small["experiments"] |= {"methods": ["WT"], "retrainIterations": 2}
    small["experiments"]["spacing"][0]["values"] = [0.8, 0.6, 0.4, 0.2]
    one_shot = grid(write(small)).cells[1:]
    assert [(c.between, c.keep) for c in one_shot] == [((0.8,), 0.6), ((0.8, 0.4), 0.2)]
    small["experiments"]["mode"] = "cascade"
    cascade = grid(write(small)).cells[1:]
    assert [(c.between, c.keep) for c in cascade] == [((0.8,), 0.6), ((0.4,), 0.2)]


def test_epochs_are_those_really_run(write: Any, small: dict[str, Any]) -> None:
    small["training"]["numEpochs"] = 10
    small["retraining"] = {"startEpoch": 7}
    cell = grid(write(small)).cells[1]
    assert (cell.epochs_train, cell.epochs_retrain) == (10, 3)


def test_overrides_that_change_the_computation_get_a_folder_of_their_own(write: Any, small: dict[str, Any]) -> None:
    path = write(small)
    plain, changed = grid(path), grid(path, "training.numEpochs=3")
    assert plain.name == "small"
    assert changed.name.startswith("small@")
    assert grid(path, "training.numEpochs=2").name == "small"
    assert grid(path, "directories.results=elsewhere").name == "small"
    assert grid(path, "training.testBatchSize=500").name == "small"


def test_overrides_may_complete_a_file(write: Any, small: dict[str, Any], capsys: Any) -> None:
    from experiment.main import main

    del small["network"]["outputSize"]
    path = str(write(small))
    assert main([path, "--plan"]) == 2
    assert main([path, "--plan", "--set", "network.outputSize=10"]) == 0


def test_an_unknown_name_in_one_variant_leaves_the_others_available(write: Any, small: dict[str, Any]) -> None:
    values = ["lenet300_100", "lenet999"]
    small["customizations"] = [{"key": ["network", "name"], "value": value} for value in values]
    plan = grid(write(small))
    reasons = {cell.variant: plan.reason(cell) for cell in plan.cells}
    assert reasons["network.name=lenet300_100"] is None
    assert "unknown network 'lenet999'" in str(reasons["network.name=lenet999"])


def test_long_values_of_a_sweep_make_no_long_file_names(write: Any, small: dict[str, Any]) -> None:
    crops = [{"type": "RandomCrop", "kwargs": {"size": 28, "padding": p}} for p in range(30)]
    small["customizations"] = [{"key": ["training", "transformsTrain"], "value": crops}]
    assert max(len(cell.folder) for cell in grid(write(small)).cells) < 200


def test_unknown_names_are_listed_and_hide_nothing(write: Any, small: dict[str, Any]) -> None:
    small["experiments"]["methods"] = ["WT", "KnownNet", "ALSD"]
    plan = grid(write(small))
    assert [c.label for c in plan.cells[1:]] == ["WT", "WT", "KnownNet", "KnownNet", "ALSD", "ALSD"]
    assert set(plan.unavailable) == {("", "KnownNet"), ("", "ALSD")}
    assert "small.yaml:" in plan.problems[1]
    assert "Did you mean 'ALDS'?" in plan.problems[1]


def test_two_methods_with_one_label_are_refused(write: Any, small: dict[str, Any]) -> None:
    small["experiments"]["methods"] = ["WT", {"name": "ALDS", "label": "WT"}, {"name": "SVD", "settings": {"rnk": 1}}]
    with pytest.raises(ConfigError) as caught:
        grid(write(small))
    assert len(caught.value.problems) == 2
    assert "second method with the label 'WT'" in caught.value.problems[0]
    assert "settings.rnk: SVD has no such setting" in caught.value.problems[1]
