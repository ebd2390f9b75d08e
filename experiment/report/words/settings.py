"""The settings of an experiment in one line per block, with the keys of the parameter file."""

from collections.abc import Iterator, Mapping
from typing import Any

from experiment.config import Parameters
from experiment.config.schema.training import Block
from experiment.report.primary_metric import by_metric
from experiment.report.results_folder import Source
from experiment.report.results_table import compressed, prune_only, variants_of
from experiment.report.words import numbers
from experiment.report.words.titles import joined

ARGUMENTS = ("kwargs", "stepKwargs", "settings")  # blocks of arguments of what `type` or `name` selects


def settings_in_words(source: Source) -> Iterator[tuple[str, str]]:
    """Terms and settings: those that differ from the default and, for retraining, those that differ from training."""
    p = source.parameters
    training, retraining = p.training.model_dump(by_alias=True), p.retraining.model_dump(by_alias=True)
    methods = dict.fromkeys(in_words(_changed(method)) for method in p.experiments.methods if method.settings)
    yield "Method settings", ", ".join(methods)
    yield "Network settings", _with_variants(source, "network", in_words_of(p.network.settings), "settings")
    yield "Training", _with_variants(source, "training", in_words_of(_changed(p.training)))
    if any(each.experiments.mode != "train" for each in all_settings(source)):
        known = sorted(set(compressed(source.results)["epochs"].dropna()))
        epochs = numbers.epochs(known) if known else ""
        own = in_words_of({key: value for key, value in retraining.items() if value != training.get(key)})
        text = "none" if prune_only(source.results) else joined(epochs, own)
        yield "Retraining", _with_variants(source, "retraining", text)
    for mode, name, block in (("gradual", "Gradual", p.gradual), ("lc", "L-C", p.lc)):
        if any(each.experiments.mode == mode for each in all_settings(source)):
            yield name, _with_variants(source, mode, in_words_of(block.model_dump(by_alias=True)))
    if p.experiments.search is not None:
        search = in_words_of(p.experiments.search.model_dump(by_alias=True))
        metric, _ = next(by_metric(source.results))
        which = "a loss of validation accuracy" if metric.name == "top1" else f"the allowed {metric.loss_title}"
        yield "Search", f"the smallest network of every method within {which} ({search})"


def all_settings(source: Source) -> list[Parameters]:
    """The resolved settings of every variant in the results."""
    return [source.settings_of(variant) for variant in variants_of(source.results)] or [source.parameters]


def in_words_of(values: Mapping[str, Any]) -> str:
    """`batchSize=32, optimizer=SGD(lr=0.02)`: keys and values, without those that are empty."""
    texts = []
    for key, value in values.items():
        arguments = values.get(f"{key}Kwargs")
        if arguments:
            texts.append(f"{key}={value}({in_words_of(arguments)})")
        elif value is not None and not (key.endswith("Kwargs") and key.removesuffix("Kwargs") in values):
            texts.append(f"{key}={in_words(value)}")
    return ", ".join(texts)


def in_words(value: object) -> str:
    """A value: a mapping with `type` or `name` as a call, others as in YAML."""
    if isinstance(value, list):
        return "[" + ", ".join(map(in_words, value)) + "]"
    if not isinstance(value, Mapping):
        return str(value)
    rest = {key: below for key, below in value.items() if key not in ("type", "name", *ARGUMENTS)}
    for key in ARGUMENTS:
        rest |= value.get(key) or {}
    name = value.get("type") or value.get("name")
    if name is None:
        return "{" + ", ".join(f"{key}: {in_words(below)}" for key, below in rest.items()) + "}"
    return f"{name}({in_words_of(rest)})" if rest else str(name)


def _changed(block: Block) -> dict[str, Any]:
    return block.model_dump(by_alias=True, exclude_defaults=True)


def _with_variants(source: Source, block: str, text: str, *keys: str) -> str:
    """The text, and the keys that variants change: by default all of the block."""
    changed = (key for variant in source.variants for key in variant.sets.get(block, ()))
    varied = [key for key in dict.fromkeys(changed) if key in keys or not keys]
    return joined(text, *([f"variants change {' and '.join(varied)}"] if varied else []))
