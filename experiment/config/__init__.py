"""From a YAML parameter file to checked settings, without torch, numpy or pandas: invalid files fail quickly."""

from experiment.config.includes import packaged_param
from experiment.config.load import ParameterFile, load
from experiment.config.schema.parameter_file import (
    DatasetRef,
    Experiments,
    LearnCompress,
    Network,
    Parameters,
    Search,
    json_schema,
)
from experiment.config.schema.training import Penalty, Retraining, Training
from experiment.config.variants import KeepStep, Variant, keep_steps
from experiment.config.yaml_file import read_plain_yaml

__all__ = [
    "DatasetRef", "Experiments", "KeepStep", "LearnCompress", "Network", "ParameterFile", "Parameters", "Penalty",
    "Retraining", "Search", "Training", "Variant", "json_schema", "keep_steps", "load", "packaged_param",
    "read_plain_yaml",
]  # fmt: skip
