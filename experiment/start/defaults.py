"""The settings that --new proposes: those of a packaged file for the same network or data, else safe ones."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from experiment.config import DatasetRef, Parameters, load, packaged_param
from experiment.start.look_at_data import DataLook

SAMPLES_TO_SEE, FEWEST_EPOCHS, MOST_EPOCHS = 600_000, 2, 30  # in training, where no file says more
MANY_SAMPLES = 20_000  # from which on batches are large
LONGEST_RETRAINING = 10  # epochs
OF_THE_MACHINE = ("precision", "channelsLast", "compile", "testBatchSize")
COUNT_EPOCHS = ("milestones", "max_epoch", "T_max", "warmup_epoch", "step_size")  # arguments of schedulers
FAMILIES = {
    "masks": ["WT", "SNIP"], "filters": ["FT", "PFP"], "low rank": ["SVD", "ALDS"], "quantization": ["Quantize"]
}  # fmt: skip
TEXT_NETWORK = "transformers:AutoModelForSequenceClassification"
SMALL_BERT = {
    "model_type": "bert", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
SETTINGS = {TEXT_NETWORK: {"config": SMALL_BERT}}


def network_for(look: DataLook) -> str:
    """A network to start with."""
    by_task = {"segmentation": "unet", "language_modelling": "gpt_small"}
    if look.task in by_task:
        return by_task[look.task]
    if "text" in look.task:
        return TEXT_NETWORK
    if look.image is None:
        return "mlp"
    return "lenet5" if look.image[0] == 1 else "resnet20" if max(look.image) <= 64 else "resnet18"


def methods_for(look: DataLook) -> list[str]:
    """A method of every family that fits; ALDS takes the rank of embeddings first."""
    return ["WT", "FT", "KLDS" if look.task == "language_modelling" else "ALDS", "SVD"]


def packaged(network: str | None, dataset: DatasetRef) -> tuple[str, Parameters] | None:
    """A packaged file for a network (None: any) on a dataset; plain pruning first."""
    root = packaged_param()
    files = [path.relative_to(root) for path in root.rglob("*.yaml")]
    for path in sorted(files, key=lambda path: ("prune" not in path.parts, path.parts)):
        text = (root / path).read_text(encoding="utf-8")
        if path.parts[0] != "training" and re.search(rf"\b{dataset.name}\b", text) and (network or "") in text:
            found = _loaded(path.as_posix())
            if found.network.dataset == dataset and network in (None, found.network.name):
                return path.as_posix(), found
    return None


@lru_cache
def _loaded(path: str) -> Parameters:
    return load(packaged_param() / path).parameters


def block(values: Parameters, name: str) -> dict[str, Any]:
    """A block as it would be written, without defaults, and without what depends on the machine."""
    found = values.model_dump(mode="json", by_alias=True, exclude_defaults=True)[name]
    return {key: value for key, value in found.items() if key not in OF_THE_MACHINE}


def training_for(network: str, dataset: DatasetRef, look: DataLook) -> dict[str, Any]:
    """The block `training`."""
    if (same := packaged(network, dataset)) is not None:
        return block(same[1], "training")
    images = packaged(None, dataset)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(SAMPLES_TO_SEE / (look.num_train or MANY_SAMPLES))))
    made: dict[str, Any] = {
        "batchSize": 128 if (look.num_train or 0) >= MANY_SAMPLES else 32,
        "optimizer": "AdamW",
        "optimizerKwargs": {"lr": 1e-3, "weight_decay": 0.01},
        "numEpochs": epochs,
        "lrSchedulers": [
            {"type": "WarmupLR", "stepKwargs": {"warmup_epoch": 1}},
            {"type": "CosineAnnealingLR", "stepKwargs": {"T_max": epochs}},
        ],
    }
    if images is not None:
        keys = ("transformsTrain", "transformsTest", "transformsFinal")
        return made | {key: value for key, value in block(images[1], "training").items() if key in keys}
    return made if look.image is None else made | _transforms(look, *look.image)


def _transforms(look: DataLook, channels: int, *size: int) -> dict[str, Any]:
    mean, std = look.mean or channels * (0.5,), look.std or channels * (0.25,)
    train: list[dict[str, Any]] = [{"type": "RandomCrop", "kwargs": {"size": [*size], "padding": max(size) // 8}}]
    made: dict[str, Any] = {}
    if look.several_sizes:
        train = [{"type": "Resize", "kwargs": {"size": size[0]}}, {"type": "RandomCrop", "kwargs": {"size": [*size]}}]
        made["transformsTest"] = [train[0], {"type": "CenterCrop", "kwargs": {"size": [*size]}}]
    if channels == 3:
        train.append({"type": "RandomHorizontalFlip"})
    made["transformsFinal"] = [{"type": "ToTensor"}, {"type": "Normalize", "kwargs": {"mean": [*mean], "std": [*std]}}]
    return {"transformsTrain": train, **made}


def with_retraining(network: str, dataset: DatasetRef, training: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The blocks `training`, with another number of epochs, and `retraining`: the end of the schedule again.

    What a packaged file for the same network and data says about retraining is kept with its number of epochs.
    """
    same = packaged(network, dataset)
    if same is not None and epochs == training["numEpochs"]:
        own = {key: v for key, v in block(same[1], "retraining").items() if training.get(key) != v}
        if own.get("numEpochs", 1) > 0 and own.get("startEpoch", 1) > 0:
            return {"training": training, "retraining": own}
    start = epochs - max(1, min(epochs // 3, LONGEST_RETRAINING)) if epochs else 0
    return {"training": with_epochs(training, epochs), "retraining": {"startEpoch": start}}


def with_epochs(training: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The same schedule in another number of epochs."""
    factor = epochs / max(1, training["numEpochs"])

    def scaled(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _times(value, factor) if key in COUNT_EPOCHS else value for key, value in arguments.items()}

    schedulers: Sequence[Mapping[str, Any]] = training.get("lrSchedulers", ())
    made = [
        {key: scaled(value) if isinstance(value, Mapping) else value for key, value in each.items()}
        for each in schedulers
    ]
    return {**training, "numEpochs": epochs} | ({"lrSchedulers": made} if made else {})


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_times(each, factor) for each in value]
    return max(1, round(value * factor))
