"""From a method's name and plain settings to a validated `MethodSpec`, without torch.

A composition is validated with all its schemes, and so is their order, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from experiment.config.error_messages import caused_by_user, expectation
from experiment.config.schema.budget import Quantity
from experiment.config.value_tree import KeyPath, dotted
from experiment.errors import ConfigError, kind_of
from experiment.methods import METHODS, TORCHPRUNE_NAMES
from experiment.methods.settings import ComposeSettings, Scheme
from experiment.registry import MethodEntry, is_import_path, resolve, suggestion

SettingFault = tuple[KeyPath, str]  # the path in a method's settings, and the error there
QUANTIZATION = "quantization"  # the kind of methods that change no plan except for the bits of its weights
NEVER_LOWERS: Mapping[str, frozenset[Quantity]] = {  # by kind; settings may say otherwise
    "weight": frozenset({"latency", "memory"}),
    QUANTIZATION: frozenset({"parameters", "flops", "latency", "memory"}),
}
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's error types


@dataclass(frozen=True)
class MethodSpec:
    """A method with its validated settings.

    Attributes:
        name: the registered label or the import path, which enters the keys of results.
        label: its name in tables and plots.
        settings: an instance of `entry.settings`.
        fixed_size: the settings decide the size, so the keep ratio has no effect.
        schemes: the methods of a composition, in order.
        recalibrate: re-estimate BatchNorm statistics after compression.
    """

    name: str
    label: str
    entry: MethodEntry
    settings: object
    fixed_size: bool = False
    schemes: tuple[MethodSpec, ...] = ()
    recalibrate: bool = False

    @property
    def has_price(self) -> bool:
        """Whether a price decides the size, too, so that less than the keep ratio allows is no surprise."""
        return getattr(self.settings, "price", None) is not None or any(scheme.has_price for scheme in self.schemes)

    @property
    def never_lowers(self) -> frozenset[Quantity]:
        """The quantities that are the uncompressed network's in all networks of the method."""
        if self.schemes:
            return frozenset.intersection(*(scheme.never_lowers for scheme in self.schemes))
        own: object = getattr(self.settings, "never_lowers", None)
        return own if isinstance(own, frozenset) else NEVER_LOWERS.get(self.entry.kind, frozenset())


def find_method(name: str) -> MethodEntry | str:
    """The entry of a label, of one of torchprune's class names or of an import path; a sentence if there is none.

    Raises: ConfigError: an import path cannot be imported.
    """
    if is_import_path(name):
        entry = resolve(name)
        told = f"'{name}' must be an experiment.registry.MethodEntry, which names the method. Got {kind_of(entry)}."
        return entry if isinstance(entry, MethodEntry) else told
    label = TORCHPRUNE_NAMES.get(name, name)
    return METHODS.get(label) or f"unknown method '{name}'.{suggestion(name, [*METHODS, *TORCHPRUNE_NAMES])}"


def configure(method: str | MethodEntry, values: Mapping[str, object]) -> MethodSpec:
    """The method of a name with its settings validated (lists become tuples).

    Raises: ConfigError: the method is unknown, or settings are; the error lists all of them.
    """
    name = method if isinstance(method, str) else method.label
    entry = find_method(method) if isinstance(method, str) else method
    if isinstance(entry, str):
        raise ConfigError(entry)
    spec = spec_or_faults(entry, values, name)
    if isinstance(spec, list):
        raise ConfigError([f"{dotted(path)}: {text}" for path, text in spec])
    return spec


def spec_or_faults(entry: MethodEntry, values: Mapping[str, object], name: str = "") -> MethodSpec | list[SettingFault]:
    """The spec of an entry's method, or all errors in its settings.

    Args:
        name: the name that was looked up; it matters for import paths only.
    """
    known = {f.name for f in fields(entry.settings)}
    have = f"It has {', '.join(sorted(known))}." if known else "It has no settings."
    faults: list[SettingFault] = [
        ((key,), f"{entry.label} has no such setting.{suggestion(key, known)} {have}")
        for key in values
        if key not in known
    ]
    settings: object = None
    given = {key: value for key, value in values.items() if key in known}
    try:
        settings = TypeAdapter(entry.settings).validate_python({**entry.preset, **_with_scheme_names(given)})
    except ValidationError as error:
        faults += [
            (e["loc"], _unknown_key(entry.settings, e["loc"]) if e["type"] in UNKNOWN_KEY else expectation(e))
            for e in caused_by_user(error.errors())
        ]
    faults += [((key,), text) for key, text in getattr(settings, "conflicts", tuple)()]
    if faults:
        return faults
    name = name if is_import_path(name) else entry.label
    if not isinstance(settings, ComposeSettings):
        return MethodSpec(name, entry.label, entry, settings, bool(getattr(settings, "fixed_size", False)))
    schemes, faults = configure_schemes(settings)
    label = " + ".join(scheme.label for scheme in schemes)
    return faults or MethodSpec(name, label, entry, settings, not takers_of(schemes), schemes)


def configure_schemes(settings: ComposeSettings) -> tuple[tuple[MethodSpec, ...], list[SettingFault]]:
    """The methods of a composition, and the errors in each or, if there are none, in their order."""
    if not settings.schemes:
        return (), [(("schemes",), "must not be empty. Expected the methods to apply, in order.")]
    made = [_configure_scheme(scheme) for scheme in settings.schemes]
    specs = tuple(spec for spec in made if isinstance(spec, MethodSpec))
    faults = [
        (("schemes", i, *path), text) for i, own in enumerate(made) if isinstance(own, list) for path, text in own
    ]
    return specs, faults or list(_order_faults(specs))


def takers_of(schemes: Sequence[MethodSpec]) -> list[int]:
    """The indices of the schemes whose size the keep ratio decides."""
    return [i for i, scheme in enumerate(schemes) if not scheme.fixed_size]


def _configure_scheme(scheme: Scheme) -> MethodSpec | list[SettingFault]:
    try:
        entry = find_method(scheme.name)
    except ConfigError as error:
        return [(("name",), problem) for problem in error.problems]
    if isinstance(entry, str):
        return [(("name",), entry)]
    if entry.settings is ComposeSettings:
        return [(("name",), "a Compose within a Compose. Write its schemes here instead.")]
    if entry.kind == "none":
        return [(("name",), f"has no effect: {entry.label} does not change the network. Remove it.")]
    made = spec_or_faults(entry, scheme.settings, scheme.name)
    return made if isinstance(made, MethodSpec) else [(("settings", *path), text) for path, text in made]


def _order_faults(schemes: Sequence[MethodSpec]) -> Iterator[SettingFault]:
    """Why schemes cannot be applied in this order."""
    first, *others = takers_of(schemes) or [0]
    for i in others:
        text = f"both {schemes[first].label} and {schemes[i].label} take their size from the keep ratio."
        yield ("schemes", i), f"{text} Give all schemes but one a size of their own, such as Prune with a density."
    for i, scheme in enumerate(schemes):
        if reason := _why_not(scheme, schemes[:i], schemes[i + 1 :]):
            yield ("schemes", i), reason


def _why_not(scheme: MethodSpec, before: Sequence[MethodSpec], after: Sequence[MethodSpec]) -> str | None:
    """Why a scheme cannot be applied between those before and after it; None if it can."""
    label, kind = scheme.entry.label, scheme.entry.kind
    masking = [s.entry.label for s in before if s.entry.kind == "weight"]
    compressing = [s.entry.label for s in after if s.entry.kind != QUANTIZATION]
    if kind == QUANTIZATION and after:
        return f"{label} must be the last scheme: later schemes would change the weights that it rounded."
    if kind in ("lowrank", "mixed") and compressing:
        return f"{label} cannot be followed by {compressing[0]}, which cannot compress factors. Put {label} after it."
    if kind == "lowrank" and masking:
        return (
            f"{label} cannot follow {masking[0]}: the factors are dense, so the masks would be lost. Remove filters or "
            "neurons before it instead, or leave out one of the two."
        )
    if scheme.entry.target == METHODS["Blocks"].target and compressing:
        return (
            f"{label} cannot be followed by {compressing[0]}, which does not support removed blocks. Put {label} last."
        )
    return None


def _with_scheme_names(values: Mapping[str, object]) -> dict[str, object]:
    """The settings with every scheme that is a bare name as a mapping."""
    schemes = values.get("schemes")
    if not isinstance(schemes, list | tuple):
        return dict(values)
    return {**values, "schemes": [{"name": scheme} if isinstance(scheme, str) else scheme for scheme in schemes]}


def _unknown_key(settings: type, path: Sequence[int | str]) -> str:
    """The error for an unknown key of a block within the settings."""
    known = _keys_at(settings, path[:-1])
    return f"unknown key.{suggestion(str(path[-1]), known)} Known here: {', '.join(known)}."


def _keys_at(kind: Any, path: Sequence[int | str]) -> list[str]:
    """The keys of the block at a path within settings of a type."""
    for part in path:
        if is_dataclass(kind):
            kind = get_type_hints(kind)[str(part)]
        else:  # a mapping's or a tuple's elements
            kind = get_args(kind)[-1 if get_origin(kind) is not tuple else 0]
    return [f.name for f in fields(kind)]
