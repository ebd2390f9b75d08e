"""Everything wrong with a training block is found before it, and said in one line each."""

import pytest

from experiment.training.check_settings import check_training
from experiment.training.settings import SchedulerSpec, TrainSettings

GOOD: dict[str, object] = {"num_epochs": 10, "batch_size": 8, "optimizer_kwargs": {"lr": 0.1, "momentum": 0.9}}


def problems_of(**changes: object) -> list[str]:
    return check_training(TrainSettings(**{**GOOD, **changes}))  # type: ignore[arg-type]


def test_good_settings() -> None:
    assert problems_of() == []
    schedulers = (
        SchedulerSpec("MultiStepLR", {"gamma": 0.1}, {"milestones": [91, 136]}),
        SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 5}),
    )
    assert problems_of(schedulers=schedulers, loss_kwargs={"reduction": "mean"}, start_epoch=10) == []
    assert problems_of(loss_kwargs={"label_smoothing": 0.1, "weight": [1.0, 2.0]}) == []
    assert problems_of(schedulers=(SchedulerSpec("OneCycleLR", {"max_lr": 0.1}, {"total_steps": 10}),)) == []


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"optimizer": "SDG"}, "optimizer: unknown name 'SDG'. Did you mean 'SGD'?"),
        ({"optimizer": "LBFGS"}, "optimizer: LBFGS cannot be used here: "),
        (
            {"optimizer_kwargs": {"momentun": 0.9}},
            "optimizerKwargs.momentun: SGD has no such argument. Did you mean 'momentum'? It takes lr, momentum,",
        ),
        ({"optimizer_kwargs": {"lr": -1.0}}, "optimizerKwargs: SGD refuses "),
        ({"optimizer_kwargs": {"lr": "much"}}, "optimizerKwargs: SGD refuses "),
        ({"loss": "CrossEntropy"}, "loss: unknown name 'CrossEntropy'. Did you mean 'CrossEntropyLoss'?"),
        (
            {"loss": "MSELoss", "task": "segmentation"},
            "loss: MSELoss does not fit the task segmentation. Expected one of CrossEntropyLossWithAuxiliary, Cross",
        ),
        ({"loss_kwargs": {"smoothing": 0.1}}, "lossKwargs.smoothing: CrossEntropyLoss has no such argument."),
        ({"loss_kwargs": {"reduction": "none"}}, "lossKwargs.reduction: must be mean or sum. Got 'none'."),
        ({"schedulers": (SchedulerSpec("StepLr"),)}, "lrSchedulers[0].type: unknown name 'StepLr'. Did you mean"),
        ({"schedulers": (SchedulerSpec("LambdaLR"),)}, "lrSchedulers[0].type: LambdaLR cannot be used here: "),
        ({"schedulers": (SchedulerSpec("StepLR"),)}, "lrSchedulers[0]: StepLR refuses {}: "),
        (
            {"schedulers": (SchedulerSpec("WarmupLR", {}, {"warmup": 5}),)},
            "lrSchedulers[0].warmup: WarmupLR has no such argument.",
        ),
        (
            {"schedulers": (SchedulerSpec("StepLR", {}, {"step_size": "many"}),)},
            "lrSchedulers[0].stepKwargs.step_size: must be a number of epochs. Got 'many'.",
        ),
        (
            {"schedulers": (SchedulerSpec("StepLR", {"step_size": 3}, {"step_size": 3}),)},
            "lrSchedulers[0]: step_size is set in both kwargs and stepKwargs.",
        ),
        ({"schedulers": (SchedulerSpec("ReduceLROnPlateau"),), "start_epoch": 3}, "lrSchedulers: ReduceLROnPlateau"),
        (
            {"schedulers": (SchedulerSpec("ReduceLROnPlateau", {"mode": "max"}),)},
            "lrSchedulers[0].kwargs.mode: ReduceLROnPlateau acts on the validation loss",
        ),
        (
            {"schedulers": (SchedulerSpec("OneCycleLR", {"max_lr": 0.1}, {"total_steps": 5}),)},
            "lrSchedulers[0]: OneCycleLR: Tried to step 6 times",
        ),
        ({"optimizer_kwargs": {"lr": 0.1, "momentum": 0.9, "dampening": "x"}}, "optimizerKwargs: SGD "),
        ({"optimizer": "Adam", "optimizer_kwargs": {"betas": [0.9]}}, "optimizerKwargs: Adam refuses "),
        ({"optimizer": "ASGD", "optimizer_kwargs": {"t0": "x"}}, "optimizerKwargs: ASGD cannot compute with "),
        ({"loss_kwargs": {"label_smoothing": "x"}}, "lossKwargs: CrossEntropyLoss cannot compute with "),
        ({"loss_kwargs": {"weight": ["a"]}}, "lossKwargs.weight: must be a list of numbers, one per class"),
        ({"schedulers": (SchedulerSpec("MultiStepLR", {"milestones": 3}),)}, "lrSchedulers[0]: MultiStepLR refuses "),
        (
            {"schedulers": (SchedulerSpec("StepLR", {"step_size": 0}),)},
            "lrSchedulers[0]: StepLR: integer modulo by zero",
        ),
        (
            {"schedulers": (SchedulerSpec("ReduceLROnPlateau", {"patience": "x"}),)},
            "lrSchedulers[0]: ReduceLROnPlateau: ",
        ),
        ({"start_epoch": 11}, "startEpoch: must be at most numEpochs, 10. Got 11."),
    ],
)
def test_one_problem(changes: dict[str, object], start: str) -> None:
    (problem,) = problems_of(**changes)
    assert problem.startswith(start)
    assert "\n" not in problem


def test_all_problems_at_once() -> None:
    found = problems_of(
        loss="MSE", schedulers=(SchedulerSpec("StepLR"),), optimizer_kwargs={"lr": 0.1, "a": 1, "b": 2}, start_epoch=12
    )
    assert [p.split(":")[0] for p in found] == [
        "optimizerKwargs.a",
        "optimizerKwargs.b",
        "loss",
        "lrSchedulers[0]",
        "startEpoch",
    ]


def test_all_schedulers_are_told_at_once() -> None:
    refused = (SchedulerSpec("StepLR"), SchedulerSpec("MultiStepLR", {"milestones": 3}))
    assert [text[:15] for text in problems_of(schedulers=refused)] == ["lrSchedulers[0]", "lrSchedulers[1]"]
    late = (SchedulerSpec("StepLR", {"step_size": 0}), SchedulerSpec("ExponentialLR", {"gamma": "x"}))
    assert [text[:15] for text in problems_of(schedulers=late)] == ["lrSchedulers[0]", "lrSchedulers[1]"]
