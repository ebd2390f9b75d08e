"""From a YAML parameter file to checked settings. No torch, numpy or pandas: a bad file fails at once."""

from experiment.config.editor import json_schema
from experiment.config.includes import packaged_param
from experiment.config.lc_schema import LearnCompress
from experiment.config.load import ParameterFile, load
from experiment.config.modes import (
    base_mode,
    epochs_of,
    is_cascade,
    retraining,
    rewinding,
    takes_tickets,
    with_rewinding,
)
from experiment.config.schema import (
    Coresets,
    Customization,
    Directories,
    Experiments,
    MethodRef,
    NamedSettings,
    Network,
    Parameters,
)
from experiment.config.search_schema import Search
from experiment.config.sweep import KeepStep, Variant, keep_steps
from experiment.config.training_schema import Component, Penalty, Retraining, Scheduler, Training
from experiment.config.yamlfile import read_plain_yaml

__all__ = [
    "Component",
    "Coresets",
    "Customization",
    "Directories",
    "Experiments",
    "KeepStep",
    "LearnCompress",
    "MethodRef",
    "NamedSettings",
    "Network",
    "ParameterFile",
    "Parameters",
    "Penalty",
    "Retraining",
    "Scheduler",
    "Search",
    "Training",
    "Variant",
    "base_mode",
    "epochs_of",
    "is_cascade",
    "json_schema",
    "keep_steps",
    "load",
    "packaged_param",
    "read_plain_yaml",
    "retraining",
    "rewinding",
    "takes_tickets",
    "with_rewinding",
]
