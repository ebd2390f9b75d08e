"""Makes users' networks plain: removes wrappers, and turns computed weights into parameters.

| input | result |
|---|---|
| `torch.compile`, `module.compile()`, DataParallel, DistributedDataParallel, of the whole or of parts | removed |
| masks of this program and of `torch.nn.utils.prune` | weights are zero there; the masks are returned |
| weight_norm, spectral_norm (both kinds), other parametrizations, rounded weights | computed once, in eval mode |
| `nn.MultiheadAttention` and other fused modules | replaced by plain layers (`experiment.layers.unfused`) |
| `torch.fx` graphs of modules | unchanged |
| tensors made in `torch.inference_mode` | copied into ordinary ones |
| lazy or quantized layers, FSDP and fully_shard, TorchScript, graphs of operators | an error that says what to do |
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from experiment.errors import CompressionError, kind_of
from experiment.layers.copied_network import computed_tensors, copied
from experiment.layers.forward_pass import evaluating
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import named_masks
from experiment.layers.quantized_weights import make_plain
from experiment.layers.read_parameters import is_matrix
from experiment.layers.unfused.family import class_in
from experiment.layers.unfused.replace import fused_modules, split_state, unfused

PREFIXES = ("_orig_mod.", "module.")  # what wrappers put before the names in a state_dict
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_MASKABLE = (nn.modules.conv._ConvNd, nn.Linear, GroupedLinear)


@dataclass(frozen=True)
class Prepared:
    """A plain network.

    Attributes:
        network: the given one if nothing had to be done, otherwise a copy, or what a wrapper contains.
        masks: parameter name -> bool tensor, False where a mask held the weight at zero.
        unfused: name -> family of the modules that plain layers have replaced.
    """

    network: nn.Module
    masks: Mapping[str, Tensor]
    unfused: Mapping[str, str] = field(default_factory=dict)


def prepared(network: nn.Module) -> Prepared:
    """A network of plain layers that computes the same in eval mode; `network` is not changed.

    It shares the parameters of `network`, or views them, unless they are computed.

    Raises: CompressionError: it is of a kind that cannot be compressed; the message says what to do.
    """
    made = with_parameters(network)
    families = fused_modules(made.network)
    network = unfused(made.network, families)
    modules, masks = dict(network.named_modules()), split_state(made.masks, families)
    masks = {n: m for n, m in masks.items() if is_matrix(m) or isinstance(modules[n.rpartition(".")[0]], _MASKABLE)}
    return Prepared(network, masks, families)


def with_parameters(network: nn.Module) -> Prepared:
    """A network without wrappers, whose layers hold their weights; its modules are still those of `network`.

    Raises: CompressionError: as `prepared`.
    """
    network = unwrapped(network)
    check_kind(network)
    if any(p.is_inference() for p in network.parameters()):  # such tensors never require gradients
        network = copied(network)
    if not any(True for _ in _computed(network)):
        return Prepared(network, {})
    plain = copied(network)
    masks: dict[str, Tensor] = {name: mask.clone() for name, mask in named_masks(plain).items()}
    with evaluating(plain, keeping_buffers=False):  # spectral_norm iterates in training mode
        for name, module, parameter, how in list(_computed(plain)):
            if isinstance(how, prune.BasePruningMethod):
                masks[f"{name}.{parameter}" if name else parameter] = module.get_buffer(f"{parameter}_mask") != 0
            _make_parameter(module, parameter, how)
    return Prepared(plain, masks)


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy of the same modules, whose layers hold their weights; masked weights are zeros.

    Raises: CompressionError: as `prepared`.
    """
    made = with_parameters(network).network
    return copied(made) if made is unwrapped(network) else made


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside `torch.compile`, DataParallel or DistributedDataParallel; a copy where parts are wrapped.

    Compiled code and replicas ignore the hooks that find layers.

    Raises: CompressionError: it is no network.
    """
    require_module(network)
    while (inner := _inside(network)) is not None:
        network = inner
    parts = any(_inside(m) is not None or m._compiled_call_impl is not None for m in network.modules())
    return _without_wrapped_parts(network) if parts else network


def require_module(network: object) -> None:
    """Raises: CompressionError: it is not a torch.nn.Module, but a CompressionResult, say."""
    if not isinstance(network, nn.Module):
        inside = " Pass its attribute `network`." if isinstance(getattr(network, "network", None), nn.Module) else ""
        what = kind_of(network)
        raise CompressionError(f"the network must be a torch.nn.Module. Got {what}.{inside}")


def without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict with the names of the plain network, without the prefixes of wrappers on any level."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_prefixes({name.removeprefix(prefix): value for name, value in state.items()})
    return {name.replace("._orig_mod.", "."): value for name, value in state.items()}


def check_kind(network: nn.Module) -> None:
    """Check that the layers have weights, in this process.

    Raises: CompressionError: they have not; the message says what to do.
    """
    for name, module in network.named_modules():
        where = f"'{name}' ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CompressionError(
                f"{where} is TorchScript, which cannot be modified. Compress the module that was scripted or traced, "
                "with these weights: net.load_state_dict(scripted.state_dict())."
            )
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if type(module).__module__.startswith(_QUANTIZED) or any(type(t).__module__.startswith("torchao") for t in own):
            raise CompressionError(
                f"{where} is already quantized. Compress the float network, then quantize the result: "
                "experiment.quantize_int8(result.network)."
            )
        if _is_operators(module):
            raise CompressionError(
                f"{where} is a graph of operators without layers, made by torch.export. Compress the network that "
                "was exported, with these weights: net.load_state_dict(exported.state_dict())."
            )
        if any(is_lazy(tensor) for tensor in own):
            raise CompressionError(
                f"{where} is lazy and has no weights yet. Run the network once before compressing it: net(example)."
            )
        if _is_sharded(module, own):
            raise CompressionError(
                f"{where}: its weights are distributed over processes. Gather them and compress in one process: "
                "state = torch.distributed.checkpoint.state_dict.get_model_state_dict(net, "
                "options=StateDictOptions(full_state_dict=True)); plain_net.load_state_dict(state)."
            )


def computed_weights(network: nn.Module) -> list[str]:
    """The names of parameters that masks, parametrizations or torch's older hooks compute at every use."""
    return [f"{name}.{parameter}" if name else parameter for name, _, parameter, _ in _computed(network)]


def _inside(module: nn.Module) -> nn.Module | None:
    inner: nn.Module | None = None
    compiled = class_in("torch._dynamo.eval_frame", "OptimizedModule")
    if compiled is not None and isinstance(module, compiled):
        inner = module.get_submodule("_orig_mod")
    elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    return inner


def _is_sharded(module: nn.Module, tensors: list[Tensor]) -> bool:
    distributed = class_in("torch.distributed.tensor", "DTensor")
    wrapper = class_in("torch.distributed.fsdp", "FullyShardedDataParallel")
    if wrapper is not None and isinstance(module, wrapper):
        return True
    return distributed is not None and any(isinstance(tensor, distributed) for tensor in tensors)


def _is_operators(module: nn.Module) -> bool:
    if type(module).__module__ == "torch.export.unflatten":
        return True
    graph_module = class_in("torch.fx.graph_module", "GraphModule")
    if graph_module is None or not isinstance(module, graph_module):
        return False
    graph: Any = module.graph
    return any(isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes)


def _computed(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, object]]:
    """Every computed parameter: module name, module, parameter name, and the hook, if a hook computes it."""
    for name, module in network.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield name, module, hook._tensor_name, hook
            elif isinstance(hook, WeightNorm | SpectralNorm):
                yield name, module, hook.name, hook
        if parametrize.is_parametrized(module):
            chains = module.parametrizations
            assert isinstance(chains, nn.ModuleDict)
            for parameter in chains:
                yield name, module, parameter, None


def _make_parameter(module: nn.Module, name: str, how: object) -> None:
    if isinstance(how, prune.BasePruningMethod):
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    elif isinstance(how, WeightNorm):
        remove_weight_norm(module, name)
    elif isinstance(how, SpectralNorm):
        remove_spectral_norm(module, name)
        for key, hook in list(module._load_state_dict_pre_hooks.items()):  # torch leaves the one that wants its state
            if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
                del module._load_state_dict_pre_hooks[key]
    else:
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        originals = list(chains[name].parameters(recurse=False))
        make_plain(module, name)
        if originals and name in module._buffers:  # torch leaves a buffer if it was made of several parameters
            value = module.get_buffer(name).detach().clone()
            delattr(module, name)
            setattr(module, name, nn.Parameter(value, requires_grad=any(p.requires_grad for p in originals)))


def _without_wrapped_parts(network: nn.Module) -> nn.Module:
    memo = computed_tensors(network)
    for module in reversed(list(network.modules())):  # inner modules first
        inner = _inside(module)
        if inner is not None:
            memo[id(module)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(network, memo)
