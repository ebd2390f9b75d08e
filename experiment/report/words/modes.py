"""A mode, and what a variant sets, in words."""

from __future__ import annotations

from experiment.report.results_folder import Source

SHORT = {"train": "training only", "retrain": "one-shot", "cascade": "cascade", "lc": "L-C"}
LONG = {
    "train": "training only",
    "retrain": "one-shot (every keep ratio starts from the reference network)",
    "cascade": "cascade (every keep ratio starts from the previous, retrained one)",
    "lc": "L-C (learning and compressing in turn; every keep ratio starts from the reference network)",
}
REWIND = "-rewind"
WITH = {
    "weights": "with rewinding",
    "random": "with random weights",
    "none": "",
}
WITH_LONG = {
    "weights": "with rewinding (weights go back to an earlier epoch before retraining)",
    "random": "with random weights (structures are retrained from fresh ones: a control)",
    "none": "",
}
WEIGHTS = {"weights": "rewound weights", "random": "random weights", "none": "kept weights"}
_MODE, _REWIND = "experiments.mode=", "experiments.rewind="


def mode_in_words(source: Source, variant: str = "", *, long: bool = False) -> str:
    """The mode of a variant, or of all of them where none is named: what they have in common."""
    mode, rewind = source.setting("experiments", "mode"), source.setting("experiments", "rewind")
    if mode is None:
        return ""
    variants = set(source.results["variant"])
    if variant.startswith(_MODE):
        mode = variant.removeprefix(_MODE)
    elif variant.startswith(_REWIND):
        rewind = variant.removeprefix(_REWIND)
    elif any(name.startswith((_MODE, _REWIND)) for name in variants):
        rewind = "none"  # they differ in it, and each says so itself
    base = str(mode).removesuffix(REWIND)
    which = str(rewind) if rewind is not None else "weights" if str(mode).endswith(REWIND) else "none"
    words, with_weights = (LONG, WITH_LONG) if long else (SHORT, WITH)
    return " ".join(part for part in (words.get(base, base), with_weights.get(which, which)) if part)


def variant_in_words(variant: str) -> str:
    """What a variant sets, short: the last part of the key and the value."""
    key, equals, value = variant.partition("=")
    if variant.startswith(_REWIND):
        return WEIGHTS.get(value, value)
    return f"{key.rpartition('.')[2]}{equals}{value}" if variant else "unchanged"
