"""The settings that determine an experiment's numbers, in a few words each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiment.config import Parameters, Penalty, Training
from experiment.report.results_folder import Source
from experiment.report.results_table import compressed, prune_only
from experiment.report.words import numbers

DESCRIBED = (
    "numEpochs", "batchSize", "optimizer", "optimizerKwargs", "lrSchedulers", "loss", "lossKwargs", "earlyStopEpoch",
)  # fmt: skip


def network_settings(source: Source) -> str:
    """The settings of the network in parentheses; empty if there are none."""
    given = _arguments(source.parameters.network.settings)
    return _unless_varied(source, f" ({given})", "network", "settings") if given else ""


def method_settings(source: Source) -> str:
    """The settings of every method that has some, by label."""
    found: dict[str, None] = {}
    for method in source.parameters.experiments.methods:
        settings = dict(method.settings)
        schemes = settings.pop("schemes", None) or []
        steps = " + ".join(map(_scheme, schemes)) if isinstance(schemes, list) else ""
        text = ", ".join(filter(None, (steps, _arguments(settings))))
        name = method.label or ("" if steps else method.name)
        if text:
            found[f"{name}: {text}" if name else text] = None
    return "; ".join(found)


def training(source: Source) -> str:
    """The training of the reference networks."""
    block = source.parameters.training
    text = ", ".join(filter(None, (numbers.epochs([block.num_epochs]), *_parts(block).values())))
    return _unless_varied(source, text, "training", *DESCRIBED)


def retraining(source: Source) -> str:
    """The amount of retraining, and how it differs from training."""
    if prune_only(source.results):
        return "none"
    block = source.parameters.retraining
    usual, own = _parts(source.parameters.training), _parts(block)
    if uses_lc(source):  # L-C replaces the schedule
        own["schedule"] = usual["schedule"]
    elif block.start_epoch > 0 and not source.varies("retraining", "startEpoch"):
        own["start"] = f"starting at epoch {block.start_epoch:g} of the schedule"
    others = [text or f"no {name}" for name, text in own.items() if text != usual.get(name, "")]
    epochs = numbers.epochs(sorted(set(compressed(source.results)["epochs"].dropna())))
    return _unless_varied(source, ", ".join([epochs, *others]), "retraining", *DESCRIBED)


def penalties(source: Source) -> str:
    """Penalties of training and, if they differ, of retraining."""
    usual, own = (_penalties(p.penalties) for p in (source.parameters.training, source.parameters.retraining))
    text = usual if usual == own else f"{usual or 'none'} in training, {own or 'none'} in retraining"
    return _unless_varied(source, text, "training", "penalties")


def distillation(source: Source) -> str:
    """How retraining uses the reference network's outputs."""
    block = source.parameters.retraining.distillation
    if block is None:
        return ""
    text = f"retraining also learns from the reference network's outputs: {_arguments(block.model_dump())}"
    return _unless_varied(source, text, "retraining", "distillation")


def uses_lc(source: Source) -> bool:
    """Whether any network was compressed in mode lc."""
    return any(p.experiments.mode == "lc" for p in all_settings(source))


def all_settings(source: Source) -> list[Parameters]:
    """The resolved settings of every variant in the results."""
    return [source.settings_of(variant) for variant in dict.fromkeys(source.results["variant"])] or [source.parameters]


def learn_compress(source: Source) -> str:
    """The schedule of mode lc, if it is used."""
    if not uses_lc(source):
        return ""
    lc = source.parameters.lc
    later = "one epoch" if lc.iterations is None else f"{lc.iterations} minibatches"
    first = f"{lc.counts(1)[0]} minibatches"
    if lc.iterations is None and lc.iterations_first is None:
        first = "five epochs"
    mu = f"mu starts at {lc.mu_init:g} and grows by a factor of {lc.mu_multiplier:g} per step"
    if lc.mu_init * lc.mu_multiplier ** (lc.steps - 1) > lc.mu_cap:
        mu += f", up to {lc.mu_cap:g}"
    at = f"at steps {_value(lc.lr_milestones)}" if lc.lr_milestones else "per step"
    rate = f"decaying to {lc.lr_end:g} in every step" if lc.lr_end is not None else f"multiplied by {lc.decay:g} {at}"
    steps = f"{lc.steps} compression steps: the first direct, the second after {first} of learning"
    return _unless_varied(source, f"{steps}, each later one after {later}; {mu}; learning rate {rate}", "lc")


def search(source: Source) -> str:
    """The goal of the search that replaces keep ratios."""
    block = source.parameters.experiments.search
    if block is None:
        return ""
    points = f"{100 * block.accuracy_loss:g} point{'s' if block.accuracy_loss != 0.01 else ''}"
    return (
        f"for every method, the smallest of at most {block.samples} networks that loses at most {points} of top-1 "
        "validation accuracy"
    )


def _parts(block: Training) -> dict[str, str]:
    """What a training block says, by topic; empty where it is the default."""
    usual_loss = block.loss == Training.model_fields["loss"].default and not block.loss_kwargs
    schedulers = (_call(each.type, {**each.step_kwargs, **each.kwargs}) for each in block.lr_schedulers)
    stop = block.early_stop_epoch
    return {
        "batches": f"batches of {block.batch_size}",
        "optimizer": _call(block.optimizer, block.optimizer_kwargs),
        "schedule": " + ".join(schedulers),
        "loss": "" if usual_loss else _call(block.loss, block.loss_kwargs),
        "early stopping": "" if stop is None else f"best validation accuracy from epoch {stop} on",
    }


def _penalties(found: Iterable[Penalty]) -> str:
    texts = []
    for penalty in found:
        strengths = _arguments({key: v for key, v in (("l1", penalty.l1), ("l2", penalty.l2)) if v is not None})
        layers = "all layers" if penalty.layers == ["*"] else ", ".join(penalty.layers)
        texts.append(" ".join([strengths, *filter(None, [", ".join(penalty.how or ())]), "on", layers]))
    return "; ".join(texts)


def _scheme(item: object) -> str:
    """One step of Compose: a name, or a name with settings."""
    return _call(item.get("name"), item.get("settings") or {}) if isinstance(item, Mapping) else str(item)


def _call(name: object, arguments: Mapping[str, Any]) -> str:
    return f"{name}({_arguments(arguments)})" if arguments else str(name)


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _unless_varied(source: Source, text: str, block: str, *keys: str) -> str:
    """The text, with a reservation if variants set what it describes."""
    return f"{text}, unless a variant changes it" if text and source.varies(block, *keys) else text
