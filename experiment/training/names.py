"""The optimizers, schedulers and losses that a parameter file may name, torch-free."""

from __future__ import annotations

OPTIMIZERS: tuple[str, ...] = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)

SCHEDULERS: tuple[str, ...] = (
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolyLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "StepLR",
    "WarmupLR",
)

LOSSES: tuple[str, ...] = ("CrossEntropyLoss", "MultiMarginLoss", "NLLLoss")

# What torch has and a parameter file cannot use, with the reason.
REFUSED: dict[str, str] = {
    "LBFGS": "it evaluates the loss several times a step",
    "Muon": "it trains matrices only, not convolutions or biases",
    "SparseAdam": "it takes sparse gradients only",
    "LambdaLR": "it takes a function, which YAML cannot say",
    "MultiplicativeLR": "it takes a function, which YAML cannot say",
    "ChainedScheduler": "it takes schedulers: list them under lrSchedulers, they multiply",
    "SequentialLR": "it takes schedulers: list them under lrSchedulers, they multiply",
}
