"""The key `retraining.tune`: its two forms, the trials that it means, and what cannot be tuned."""

from collections.abc import Callable

import pytest

from experiment.config import ParameterFile
from experiment.config.tuning import num_trials, trained_blocks, trials

Loaded = Callable[..., ParameterFile]
LR = "retraining.tune.optimizerKwargs.lr"


def test_every_combination_is_a_trial(loaded: Loaded, good: str) -> None:
    tune = "retraining: {startEpoch: 8, tune: {optimizerKwargs.lr: [0.1, 0.03], earlyStopEpoch: [null, 9]}}\n"
    p = loaded(good + tune).parameters
    assert [trial.name for trial in trials(p)] == [
        "earlyStopEpoch=null, optimizerKwargs.lr=0.1", "earlyStopEpoch=null, optimizerKwargs.lr=0.03",
        "earlyStopEpoch=9, optimizerKwargs.lr=0.1", "earlyStopEpoch=9, optimizerKwargs.lr=0.03",
    ]  # fmt: skip
    assert num_trials(p) == 4
    for trial in trials(p):
        changed = {"early_stop_epoch", "optimizer_kwargs", "tune"}
        assert trial.block.model_dump(exclude=changed) == p.retraining.model_dump(exclude=changed)
        assert trial.block.optimizer_kwargs == {"lr": trial.values["optimizerKwargs.lr"], "momentum": 0.9}
        assert trial.block.early_stop_epoch == trial.values["earlyStopEpoch"]
        assert trial.block.tune is None
    assert [place for place, _ in trained_blocks(p)] == [("training",), *[("retraining", "tune")] * 4]


def test_without_it_there_is_one_trial_with_the_block_itself(loaded: Loaded, good: str) -> None:
    p = loaded(
        good + "retraining: {startEpoch: 8, penalties: [{l1: 1, how: proximal}], transformsTest: [{type: ToTensor}]}"
    ).parameters
    (trial,) = trials(p)
    assert (trial.values, trial.name, trial.block, num_trials(p)) == ({}, "", p.retraining, 1)
    assert trained_blocks(p) == [(("training",), p.training), (("retraining",), p.retraining)]


def test_random_weights_have_the_whole_schedule_in_every_trial(loaded: Loaded, good: str) -> None:
    text = good.replace("mode: retrain", "mode: retrain\n  rewind: random")
    p = loaded(text + "retraining: {startEpoch: 8, tune: {optimizerKwargs.lr: [0.1, 0.03]}}").parameters
    assert [trial.block.start_epoch for trial in trials(p)] == [0, 0]


def test_the_command_line_and_variants_set_it(loaded: Loaded, good: str) -> None:
    given = {"optimizerKwargs.lr": [0.2, 0.1]}
    assert loaded(good, f"{LR}=[0.2, 0.1]").parameters.retraining.tune == given
    own = good + "retraining: {tune: {optimizerKwargs.lr: [1, 2]}}\n"
    assert loaded(own, f"{LR}=[0.2, 0.1]").parameters.retraining.tune == given
    file = loaded(
        own + "customizations:\n  - {key: [retraining, tune], value: null}\n"
        "  - {key: [retraining, tune], value: {optimizerKwargs.lr: [0.2, 0.1]}}\n"
    )
    assert [variant.parameters.retraining.tune for variant in file.variants] == [None, given]


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("tune: 3", "12: retraining.tune: must be a mapping (key: value). Got 3."),
        ("tune: {optimizerKwargs.lr: 0.1}", f"12: {LR}: must be a list of values to try. Got 0.1."),
        ("tune: {optimizerKwargs.lr: [0.1]}", f"12: {LR}: must list at least two values to try. Got 1."),
        ("tune: {optimizerKwargs.lr: [0.1, 1e-1]}", f"12: {LR}: lists 0.1 twice."),
        ("tune: {optimizerKwargs.lr: [0.1, '0.2']}", f"12: {LR}[1]: must be a number without quotes. Got '0.2'."),
        ("tune: {batchSize: [0, 2]}", "12: retraining.tune.batchSize[0]: must be at least 1. Got 0."),
        ("tune: {batchsize: [1, 2]}", "12: retraining.tune.batchsize: unknown key. Did you mean 'batchSize'?"),
        ("tune: {lr: [1, 2]}", "12: retraining.tune.lr: unknown key. Write optimizerKwargs.lr."),
        ("tune: {}", "12: retraining.tune: names nothing to tune. Remove it, or name settings."),
        ("tune: {optimizerKwargs: {}}", "12: retraining.tune: names nothing to tune."),
        (
            "tune: {distillation.alpha: [0.5, 2]}",
            "12: retraining.tune.distillation.alpha[1]: must be at most 1. Got 2.",
        ),
        (
            "tune: {distillation: [null, {beta: 2}]}",
            "12: retraining.tune.distillation[1].beta: unknown key. Known keys: temperature, alpha.",
        ),
        (
            "tune: {penalties: [[], [{l1: -1}]]}",
            "12: retraining.tune.penalties[1][0].l1: must be at least 0. Got -1.",
        ),
        (
            "tune: {numEpochs: [1, 2]}",
            "12: retraining.tune.numEpochs: cannot be tuned: all trials of all methods retrain for the same number of "
            "epochs. Use customizations.",
        ),
        ("tune: {testBatchSize: [1, 2]}", "12: retraining.tune.testBatchSize: cannot be tuned: it changes no network."),
        ("tune: {optimizerKwargs.nesterov: [no, true]}", "'no' is ambiguous. Write false, or"),
        (
            f"tune: {{batchSize: {list(range(1, 12))}, optimizerKwargs.lr: {list(range(1, 12))}}}",
            "12: retraining.tune: has 121 combinations of values. At most 100 are allowed.",
        ),
        (
            "numEpochs: 0, tune: {optimizerKwargs.lr: [1, 2]}",
            "12: retraining.tune: has no effect without epochs of retraining: startEpoch is 0, numEpochs is 0.",
        ),
        ("startEpoch: 12, tune: {optimizerKwargs.lr: [1, 2]}", "startEpoch is 12, numEpochs is 12."),
        ("batchSize: 0, tune: {batchSize: [0, 2]}", "12: retraining.batchSize: must be at least 1. Got 0."),
    ],
)
def test_what_cannot_be_tuned(problems: Callable[..., tuple[str, ...]], good: str, block: str, told: str) -> None:
    (problem,) = problems(f"{good}retraining: {{{block}}}\n")
    assert told in problem


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("train", "has no effect in mode train, which retrains nothing. Remove it."),
        ("lc", "cannot be used in mode lc, where learning and compression alternate. Remove it."),
    ],
)
def test_modes_without_retraining(problems: Callable[..., tuple[str, ...]], good: str, mode: str, told: str) -> None:
    text = good.replace("mode: retrain", f"mode: {mode}") + "retraining: {tune: {optimizerKwargs.lr: [1, 2]}}\n"
    assert problems(text) == (f"e.yaml:12: retraining.tune: {told}",)


def test_a_variant_that_retrains_nothing_is_blamed(problems: Callable[..., tuple[str, ...]], good: str) -> None:
    text = good + "retraining: {tune: {optimizerKwargs.lr: [1, 2]}}\ncustomizations:\n"
    (problem,) = problems(text + "  - {key: [retraining, numEpochs], value: 0}\n")
    assert problem.startswith("e.yaml:14: customizations[0]: with retraining.numEpochs=0: retraining.tune: has no")
