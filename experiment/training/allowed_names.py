"""The names of optimizers, schedulers and losses in parameter files; no torch here."""

OPTIMIZERS: tuple[str, ...] = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip

SCHEDULERS: tuple[str, ...] = (
    "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR",
    "MultiStepLR", "OneCycleLR", "PolyLR", "PolynomialLR", "ReduceLROnPlateau", "StepLR", "WarmupLR",
)  # fmt: skip

LOSSES: tuple[str, ...] = (
    "BCEWithLogitsLoss", "CrossEntropyLoss", "CrossEntropyLossWithAuxiliary", "HuberLoss", "L1Loss", "MSELoss",
    "MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "SmoothL1Loss",
)  # fmt: skip

# Classes of torch that parameter files cannot use, and why.
REFUSED: dict[str, str] = {
    "LBFGS": "it evaluates the loss several times per step",
    "Muon": "it optimizes matrices only, not convolutions or biases",
    "SparseAdam": "it supports only sparse gradients",
    "LambdaLR": "it takes a function, which YAML cannot express",
    "MultiplicativeLR": "it takes a function, which YAML cannot express",
    "ChainedScheduler": "it takes schedulers. List them under lrSchedulers: they multiply",
    "SequentialLR": "it takes schedulers. List them under lrSchedulers: they multiply",
}
