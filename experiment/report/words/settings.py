"""The settings that decide an experiment's numbers, in a few words each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiment.report.mean_and_spread import compressed, prune_only
from experiment.report.results_folder import Source
from experiment.report.words import numbers

USUAL_LOSS = "CrossEntropyLoss"
TOLD = (
    "numEpochs",
    "batchSize",
    "optimizer",
    "optimizerKwargs",
    "lrSchedulers",
    "loss",
    "lossKwargs",
    "earlyStopEpoch",
)


def network_settings(source: Source) -> str:
    """What the network was made with, in brackets; nothing where nothing is set."""
    given = _arguments(source.setting("network", "settings"))
    return _unless_swept(source, f" ({given})", "network", "settings") if given else ""


def method_settings(source: Source) -> str:
    """The settings of every method that has some, by its label."""
    methods = source.setting("experiments", "methods")
    told: dict[str, None] = {}
    for method in methods if isinstance(methods, list) else []:
        if isinstance(method, Mapping) and isinstance(method.get("settings"), Mapping) and method["settings"]:
            settings = dict(method["settings"])
            schemes = settings.pop("schemes", None)
            steps = [_scheme(s) for s in schemes] if isinstance(schemes, list) else []
            text = ", ".join(filter(None, (" + ".join(steps), _arguments(settings))))
            name = method.get("label") or ("" if steps else method.get("name"))  # steps name themselves
            told[f"{name}: {text}" if name else text] = None
    return "; ".join(told)


def training(source: Source) -> str:
    """The training of the reference networks."""
    block = _block(source, "training")
    epochs = block.get("numEpochs")
    parts = (numbers.epochs([epochs]) if isinstance(epochs, int | float) else "", *_parts(block).values())
    return _unless_swept(source, ", ".join(part for part in parts if part), "training", *TOLD)


def retraining(source: Source) -> str:
    """The amount of retraining, and what of it is not as in training."""
    cells = compressed(source.results)
    if prune_only(source.results):
        return "none"
    usual, own = _parts(_block(source, "training")), _parts(_retraining_block(source))
    if in_turns(source):  # which does without schedules
        usual["schedule"] = own["schedule"]
    else:
        own["start"] = _start(source)
    others = [text or f"no {name}" for name, text in own.items() if text != usual.get(name, "")]
    text = ", ".join([numbers.epochs(sorted(set(cells["epochs"].dropna()))), *others])
    return _unless_swept(source, text, "retraining", *TOLD)


def _start(source: Source) -> str:
    """Where in the schedule retraining starts; variants that set it say so, and random weights start at its start."""
    start = source.setting("retraining", "startEpoch")
    if not isinstance(start, int | float) or start == 0 or source.setting("experiments", "rewind") == "random":
        return ""
    return "" if _swept(source, "retraining", "startEpoch") else f"from epoch {start:g} of the schedule on"


def penalties(source: Source) -> str:
    """Penalties of training, and of retraining where they are others."""
    usual, own = _penalties(_block(source, "training")), _penalties(_retraining_block(source))
    text = usual if usual == own else f"{usual or 'none'} in training, {own or 'none'} in retraining"
    return _unless_swept(source, text, "training", "penalties")


def distillation(source: Source) -> str:
    """How retraining learns from the reference network's answers."""
    block = source.setting("retraining", "distillation")
    if not isinstance(block, Mapping):
        return ""
    from experiment.config.schema.training import Distillation  # only here: it brings the schema of parameter files

    values = {name: block.get(name, field.default) for name, field in Distillation.model_fields.items()}
    text = f"retraining learns from the reference network, too: {_arguments(values)}"
    return _unless_swept(source, text, "retraining", "distillation")


def in_turns(source: Source) -> bool:
    """Whether any network was made in mode lc."""
    modes = {str(source.setting("experiments", "mode"))}
    modes |= {v.rpartition("=")[2] for v in source.results["variant"] if v.startswith("experiments.mode=")}
    return "lc" in modes


def learn_compress(source: Source) -> str:
    """The block `lc` with its defaults, where mode lc is run."""
    if not in_turns(source):
        return ""
    from experiment.config import LearnCompress  # only here: it brings the schema of parameter files with it

    given = _block(source, "lc")
    try:
        lc = LearnCompress.model_validate(given)
    except ValueError:  # written by a version with other keys
        return _unless_swept(source, _arguments(given), "lc")
    others = "an epoch" if lc.iterations is None else f"{lc.iterations} minibatches"
    usual = "five epochs" if lc.iterations is None else f"{lc.counts(1)[0]} minibatches"
    first = usual if lc.iterations_first is None else f"{lc.iterations_first} minibatches"
    mu = f"mu {lc.mu_init:g} multiplied by {lc.mu_multiplier:g} a step"
    if lc.mu_init * lc.mu_multiplier ** (lc.steps - 1) > lc.mu_cap:
        mu += f" up to {lc.mu_cap:g}"
    at = f"at steps {_value(lc.lr_milestones)}" if lc.lr_milestones else "a step"
    rate = f"down to {lc.lr_end:g} in every step" if lc.lr_end is not None else f"multiplied by {lc.decay:g} {at}"
    turns = f"{lc.steps} compressions: the first direct, the second after {first}, every other after {others}"
    text = f"{turns}; {mu}, learning rate {rate}"
    return _unless_swept(source, text, "lc")


def search(source: Source) -> str:
    """What was searched for in the place of keep ratios."""
    block = source.setting("experiments", "search")
    if not isinstance(block, Mapping):
        return ""
    from experiment.config import Search  # only here: it brings the schema of parameter files with it

    loss = block.get("accuracyLoss", Search.model_fields["accuracy_loss"].default)
    most = block.get("samples", Search.model_fields["samples"].default)
    points = f"{100 * loss:g} point{'s' if loss != 0.01 else ''}" if isinstance(loss, int | float) else "so much"
    return f"for every method the smallest of at most {most} networks that loses at most {points} of validation top-1"


def _block(source: Source, name: str) -> Mapping[str, Any]:
    block = source.setting(name)
    return block if isinstance(block, Mapping) else {}


def _retraining_block(source: Source) -> Mapping[str, Any]:
    """Training with retraining's own keys on top, where arguments go together with what they belong to."""
    from experiment.config.value_tree import CHOSEN_BY  # only here: its package brings the schema with it

    merged = dict(_block(source, "training"))
    usual = dict(merged)
    for key, value in _block(source, "retraining").items():
        below = usual.get(key)
        chooser = CHOSEN_BY.get(key, "")
        own = _block(source, "retraining").get(chooser, usual.get(chooser))
        joined = isinstance(value, Mapping) and isinstance(below, Mapping) and own == usual.get(chooser)
        merged[key] = {**below, **value} if joined else value  # type: ignore[dict-item]
    return merged


def _parts(block: Mapping[str, Any]) -> dict[str, str]:
    """What a block of training says, by what it is about."""
    batch, stop = block.get("batchSize"), block.get("earlyStopEpoch")
    loss = block.get("loss") or USUAL_LOSS
    return {
        "batches": "" if batch is None else f"batches of {batch}",
        "optimizer": _call(block.get("optimizer"), block.get("optimizerKwargs")),
        "schedule": " + ".join(_schedulers(block.get("lrSchedulers"))),
        "loss": "" if loss == USUAL_LOSS and not block.get("lossKwargs") else _call(loss, block.get("lossKwargs")),
        "early stopping": "" if stop is None else f"the best validated state from epoch {stop} on",
    }


def _schedulers(found: Any) -> Iterator[str]:
    for item in found if isinstance(found, list) else []:
        if isinstance(item, Mapping):
            arguments = [item.get(key) for key in ("stepKwargs", "kwargs")]
            yield _call(
                item.get("type"), {k: v for part in arguments if isinstance(part, Mapping) for k, v in part.items()}
            )


def _penalties(block: Mapping[str, Any]) -> str:
    found = block.get("penalties")
    told = []
    for item in found if isinstance(found, list) else []:
        if isinstance(item, Mapping):
            strengths = _arguments({key: item[key] for key in ("l1", "l2") if item.get(key) is not None})
            how, layers = _listed(item.get("how")), _listed(item.get("layers"))
            told.append(
                f"{strengths}{f' {how}' if how else ''} on {layers if layers not in ('', '*') else 'all layers'}"
            )
    return "; ".join(told)


def _scheme(item: Any) -> str:
    """One step of a composition: a name, or one with settings."""
    if not isinstance(item, Mapping):
        return str(item)
    return _call(item.get("name"), item.get("settings"))


def _call(name: Any, arguments: Any) -> str:
    given = _arguments(arguments)
    return f"{name}({given})" if name and given else str(name or "")


def _arguments(values: Any) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items()) if isinstance(values, Mapping) else ""


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _unless_swept(source: Source, text: str, block: str, *keys: str) -> str:
    """The text, with a word of warning where variants set what it tells of."""
    return f"{text}, unless a variant sets it" if text and _swept(source, block, *keys) else text


def _swept(source: Source, block: str, *keys: str) -> bool:
    """Whether variants set the block, or one of these keys of it (any, where none is named)."""
    paths = [f"{block}.{key}" for key in keys] or [block]
    ends = tuple(f"{path}{end}" for path in paths for end in (".", "="))
    return any(variant.startswith((f"{block}=", *ends)) for variant in source.results["variant"])
