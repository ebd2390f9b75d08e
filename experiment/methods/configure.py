"""The settings of methods made of plain values and checked, compositions looked through; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from experiment.errors import ConfigError
from experiment.methods.chain import Stage, order_faults
from experiment.methods.find import find_method
from experiment.methods.settings import ComposeSettings
from experiment.registry import MethodEntry, is_import_path, suggestion

if TYPE_CHECKING:
    from experiment.config.value_tree import KeyPath

Fault = tuple["KeyPath", str]
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names for it


def make_settings(entry: MethodEntry, values: Mapping[str, object]) -> object:
    """The settings dataclass of a method from plain values (lists become tuples).

    Raises: ConfigError: an unknown setting, or a value of the wrong type.
    """
    from experiment.config.value_tree import dotted

    made, faults = _validated(entry, values)
    if faults:
        raise ConfigError([f"{dotted(path)}: {text}" for path, text in faults])
    return made


def setting_faults(entry: MethodEntry, values: Mapping[str, object]) -> list[Fault]:
    """Everything that is wrong with a method's settings, each with its path in `values`."""
    return _validated(entry, values)[1]


def is_fixed_size(settings: object) -> bool:
    """Whether a method's settings decide the size, so that no keep ratio does: a true `fixed_size`.

    Of a composition: whether none of its schemes takes the keep ratio.
    """
    if isinstance(settings, ComposeSettings):
        return all(stage.fixed_size for stage in stages_of(settings))
    return bool(getattr(settings, "fixed_size", False))


def default_label(entry: MethodEntry, settings: object) -> str:
    """What a method is called where it is given no label; a composition is called what its schemes are."""
    if isinstance(settings, ComposeSettings):
        return " + ".join(stage.entry.label for stage in stages_of(settings))
    return entry.label


def stages_of(settings: ComposeSettings) -> tuple[Stage, ...]:
    """The schemes of a composition looked up.

    Raises: ConfigError: a name is not known, or settings are wrong.
    """
    stages = []
    for scheme in settings.schemes:
        entry = find_method(scheme.name)
        if isinstance(entry, str):
            raise ConfigError(entry)
        name = scheme.name if is_import_path(scheme.name) else entry.label
        made = make_settings(entry, scheme.settings)
        stages.append(Stage(name, entry, made, is_fixed_size(made)))
    return tuple(stages)


def composition_faults(settings: ComposeSettings) -> Iterator[Fault]:
    """What is wrong with every scheme alone and, where nothing is, with their order."""
    if not settings.schemes:
        yield ("schemes",), "must not be empty: the methods to apply, one after the other."
    alone = [fault for i in range(len(settings.schemes)) for fault in _scheme_faults(settings, i)]
    yield from alone or order_faults(stages_of(settings))


def _scheme_faults(settings: ComposeSettings, i: int) -> Iterator[Fault]:
    scheme, path = settings.schemes[i], ("schemes", i)
    try:
        entry = find_method(scheme.name)
        if isinstance(entry, str):
            yield (*path, "name"), entry
            return
        if entry.settings is ComposeSettings:
            yield (*path, "name"), "a Compose within a Compose. Write its schemes here, one after the other."
            return
        for key, text in setting_faults(entry, scheme.settings):
            yield (*path, "settings", *key), text
    except ConfigError as error:
        for problem in error.problems:
            yield (*path, "name"), problem
        return
    if entry.kind == "none":
        yield (*path, "name"), f"has no effect: {entry.label} leaves the network as it is. Leave it out."


def _validated(entry: MethodEntry, values: Mapping[str, object]) -> tuple[object, list[Fault]]:
    from pydantic import TypeAdapter, ValidationError  # dear to import, and not needed to compress

    from experiment.config.error_messages import expectation

    known = {f.name for f in fields(entry.settings)}
    have = f"It has {', '.join(sorted(known))}." if known else "It has no settings."
    faults: list[Fault] = [
        ((key,), f"{entry.label} has no such setting.{suggestion(key, known)} {have}")
        for key in values
        if key not in known
    ]
    made: object = None
    try:
        made = TypeAdapter(entry.settings).validate_python(_spelt_out(values, known))
    except ValidationError as error:
        faults += [
            (e["loc"], _unknown_key(entry.settings, e["loc"]) if e["type"] in UNKNOWN_KEY else expectation(e))
            for e in error.errors()
        ]
    if isinstance(made, ComposeSettings) and not faults:
        faults += composition_faults(made)
    return made, faults


def _spelt_out(values: Mapping[str, object], known: Iterable[str]) -> dict[str, object]:
    """The values that are known; a scheme may be a bare name, as a method may."""
    found = {key: value for key, value in values.items() if key in known}
    if isinstance(schemes := found.get("schemes"), list | tuple):
        found["schemes"] = [{"name": scheme} if isinstance(scheme, str) else scheme for scheme in schemes]
    return found


def _unknown_key(settings: type, path: Sequence[int | str]) -> str:
    """What to say of a key that a block within the settings does not have."""
    known = _keys_at(settings, path[:-1])
    return f"unknown key.{suggestion(str(path[-1]), known)} Known here: {', '.join(known)}."


def _keys_at(kind: Any, path: Sequence[int | str]) -> list[str]:
    """The keys of the block at a path of settings: into a field by its name, into what a field contains by the rest."""
    for part in path:
        if is_dataclass(kind):
            kind = get_type_hints(kind)[str(part)]
        else:
            kind = get_args(kind)[-1 if get_origin(kind) is not tuple else 0]
    return [f.name for f in fields(kind)]
