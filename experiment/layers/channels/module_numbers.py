"""Numbers that modules keep about their channels, such as `num_heads` or `hidden_size`, and a config's.

Forward passes use them to reshape, so they must follow the channels that are left. What a number is called tells what
it may count; whether it does is tried (`find_numbers`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from experiment.errors import CompressionError
from experiment.layers.channels.channel_axes import Side

CONFIG = "config."
HEADS = frozenset({
    "num_heads", "num_attention_heads", "n_heads", "n_head", "nheads", "nhead", "heads", "num_key_value_heads",
    "num_kv_heads", "n_kv_heads", "kv_heads", "encoder_attention_heads", "decoder_attention_heads",
})  # fmt: skip
INNER = frozenset({"all_head_size", "inner_dim", "attn_dim", "kv_dim", "split_size", "d_attn"})
NEURONS = frozenset({
    "intermediate_size", "hidden_features", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
})  # fmt: skip
WIDTH = frozenset({
    "hidden_size", "embed_dim", "embedding_dim", "hidden_dim", "dim", "d_model", "model_dim", "n_embd", "num_features",
    "width", "embedding_size", "word_embed_proj_dim", "out_dim", "in_dim", "dim_out", "channels",
    "out_features", "in_features",
})  # fmt: skip
NAMES = HEADS | INNER | NEURONS | WIDTH


@dataclass(frozen=True)
class Number:
    """An integer attribute of a module that is proportional to the channels on one side of a layer.

    Attributes:
        module: dotted name. attribute: its name; after `config.`, that of an entry of the module's config.
        value: before any channel is removed.
        layer, side: the side that it follows: value' = value * channels that are left / all channels.
    """

    module: str
    attribute: str
    value: int
    layer: str
    side: Side


def own_numbers(module: nn.Module) -> dict[str, int]:
    """The attributes of a module with a name that may count channels, and their values above 1."""
    return {name: value for name, value in vars(module).items() if name in NAMES and _counts(value)}


def config_numbers(module: nn.Module) -> dict[str, int]:
    """The same of the module's config: an object that can be written to a file, as Hugging Face's are."""
    config = vars(module).get("config")
    if config is None or not hasattr(config, "to_dict"):
        return {}
    values = {name: getattr(config, name, None) for name in NAMES}
    return {CONFIG + name: value for name, value in values.items() if isinstance(value, int) and _counts(value)}


def set_numbers(network: nn.Module, numbers: Mapping[str, Mapping[str, int]]) -> None:
    """Write modules' own numbers, in place.

    Raises: CompressionError: a module has no such number, or a smaller one.
    """
    for name, values in numbers.items():
        module = network.get_submodule(name)
        known = {**own_numbers(module), **config_numbers(module)}
        for attribute, value in values.items():
            if not 1 <= value <= known.get(attribute, 0):
                raise CompressionError(
                    f"{name or 'the network'}: expected a number '{attribute}' of at least {value}. "
                    f"Got {known.get(attribute, 'none')}."
                )
            holder = module.config if attribute.startswith(CONFIG) else module
            setattr(holder, attribute.removeprefix(CONFIG), value)


def _counts(value: object) -> bool:
    return type(value) is int and value > 1
