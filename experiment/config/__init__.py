"""From a YAML parameter file to checked settings, without torch, numpy or pandas: invalid files fail quickly."""

from experiment.config.includes import packaged_param
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
from experiment.config.schema.parameter_file import (
    Directories,
    Experiments,
    LearnCompress,
    NamedSettings,
    Network,
    Parameters,
    Search,
    json_schema,
)
from experiment.config.schema.training import Penalty, Retraining, Training
from experiment.config.variants import KeepStep, Variant, keep_steps
from experiment.config.yaml_file import read_plain_yaml

__all__ = [
    "Directories", "Experiments", "KeepStep", "LearnCompress", "NamedSettings", "Network", "ParameterFile",
    "Parameters", "Penalty", "Retraining", "Search", "Training", "Variant", "base_mode", "epochs_of", "is_cascade",
    "json_schema", "keep_steps", "load", "packaged_param", "read_plain_yaml", "retraining", "rewinding",
    "takes_tickets", "with_rewinding",
]  # fmt: skip
