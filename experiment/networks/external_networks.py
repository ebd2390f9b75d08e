"""Networks of transformers and timm under their own names: `transformers:BertForMaskedLM`, `timm:resnet18`."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiment.errors import ConfigError, kind_of, shortened
from experiment.registry import InputForm, suggestion
from experiment.user_code import missing_module

WEIGHTS = "*.safetensors"
_NOT_FOR_TIMM = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "num_classes", "in_chans")


def external_factory(name: str) -> Callable[..., object] | None:
    """The factory `(input_shape, output_size, config)` of a network of transformers or timm; None for other names.

    Raises: ConfigError: the library is not installed, or does not have this network.
    """
    library, _, network = name.partition(":")
    made = {"transformers": _transformers_factory, "timm": _timm_factory}.get(library)
    if made is None:
        return None
    try:
        module = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ConfigError(f"network '{name}': {missing_module(error.name or library)}") from error
    return made(module, network)


def bert(input_shape: InputForm, output_size: int, config: Mapping[str, Any] | str | None = None) -> nn.Module:
    """BERT for classes or numbers from texts: `transformers:BertForSequenceClassification`.

    The default has the sizes of bert-base-cased (108,311,810 parameters for two classes) and random weights. `config`
    is as for other networks of transformers: a local folder holds trained weights.

    Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805
    """
    made: Any = external_factory("transformers:BertForSequenceClassification")
    return made(input_shape, output_size, {"vocab_size": 28996} if config is None else config)  # type: ignore[no-any-return]


def _transformers_factory(transformers: Any, name: str) -> Callable[..., object]:
    known = dir(transformers)
    made = getattr(transformers, name) if name in known else None  # a module that imports its classes when asked
    automatic = hasattr(made, "from_config")
    if not inspect.isclass(made) or not (automatic or issubclass(made, transformers.PreTrainedModel)):
        networks = [n for n in known if "For" in n or n.endswith("Model")]
        raise ConfigError(
            f"transformers has no network '{name}'.{suggestion(name, networks)} Expected the name of a model's class, "
            "such as AutoModelForSequenceClassification."
        )

    def make(input_shape: tuple[int, ...], output_size: int, config: Mapping[str, Any] | str) -> nn.Module:
        """A network of transformers with `output_size` labels.

        Args:
            config: the fields of its configuration, with `model_type` for an Auto class; weights are then random.
                Or a local folder written by `save_pretrained`, with weights in safetensors files.
        """
        with _without_progress_bars(transformers):
            if isinstance(config, str):
                return _of_folder(made, Path(config), output_size)
            return _of_config(transformers, made, config, output_size)

    return make


def _of_config(transformers: Any, made: Any, config: object, output_size: int) -> nn.Module:
    if not isinstance(config, Mapping):
        raise ConfigError(f"config must be a mapping of a configuration's fields, or a folder. Got {kind_of(config)}.")
    fields = dict(config)
    if "num_labels" in fields:
        raise ConfigError("config.num_labels: the number of labels is network.outputSize. Remove it.")
    kind = getattr(made, "config_class", None)
    if kind is None:  # an Auto class
        model_type, known = fields.pop("model_type", None), transformers.CONFIG_MAPPING
        if not isinstance(model_type, str) or model_type not in known:
            near = suggestion(model_type, known.keys()) if isinstance(model_type, str) else ""
            raise ConfigError(
                f"config.model_type: {made.__name__} needs the kind of network, such as bert or vit. "
                f"Got {shortened(repr(model_type))}.{near}"
            )
        kind = known[model_type]
    allowed = {*kind().to_dict(), *kind.attribute_map, "decoder_start_token_id"}  # read by T5, which does not list it
    for key in fields:
        if key not in allowed:  # transformers would keep it without an effect
            raise ConfigError(f"config.{key}: {kind.__name__} has no such field.{suggestion(key, allowed)}")
    made_config = kind(**fields, num_labels=output_size)
    return made.from_config(made_config) if hasattr(made, "from_config") else made(made_config)  # type: ignore[no-any-return]


def _of_folder(made: Any, folder: Path, output_size: int) -> nn.Module:
    if not folder.is_dir():
        raise ConfigError(
            f"config: no folder '{shortened(str(folder))}' in {Path.cwd()}. Expected one written by "
            "network.save_pretrained(folder); nothing is downloaded."
        )
    if not any(folder.glob(WEIGHTS)):
        raise ConfigError(
            f"config: {folder} has no {WEIGHTS} file, and pickled weights are not read. Write the network with "
            "network.save_pretrained(folder)."
        )
    return made.from_pretrained(  # type: ignore[no-any-return]
        str(folder), num_labels=output_size, local_files_only=True, use_safetensors=True, trust_remote_code=False,
        dtype=torch.float32,
    )  # fmt: skip


@contextmanager
def _without_progress_bars(transformers: Any) -> Iterator[None]:
    """Where the command draws its own."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _timm_factory(timm: Any, name: str) -> Callable[..., object]:
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network '{name}'.{suggestion(name, timm.list_models())}")
    return partial(_of_timm, timm, name)


def _of_timm(
    timm: Any, name: str, input_shape: tuple[int, ...], output_size: int, config: Mapping[str, Any] | None = None
) -> nn.Module:
    if not isinstance(input_shape, tuple) or len(input_shape) != 3:
        raise ConfigError(f"timm:{name}: expected inputs (channels, height, width), one image. Got {input_shape}.")
    settings = dict(config or {})
    for key in _NOT_FOR_TIMM:
        if key in settings:
            raise ConfigError(
                f"config.{key}: cannot be set. Classes and channels follow from the dataset, and weights are named by "
                "network.weights."
            )
    return timm.create_model(  # type: ignore[no-any-return]
        name, pretrained=False, num_classes=output_size, in_chans=input_shape[0], **settings
    )
