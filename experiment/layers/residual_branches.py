"""Finds branches that can be removed: f in x + f(x), whatever follows the sum, such as the norm of a post-norm layer.

The graph of a forward pass shows the sums. To a branch belong all modules whose parameters have no effect without it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, call_network, mapped, output_tensors
from experiment.layers.channels.check_slicing import randomised
from experiment.layers.forward_pass import Call, evaluating, observing
from experiment.layers.residual_blocks import LAYERS, again, drawn, inside, once_called, silence
from experiment.layers.skipped_blocks import ZeroBranch
from experiment.tensor_file import load_tensors

Branch = Mapping[str, int]  # the modules of a branch -> the number of outputs of each, 0 if it is no tuple
Node = Any  # of autograd's graph


@dataclass(frozen=True)
class _End:
    """Where a module's first output is in the graph, and the number of its outputs, 0 if it is no tuple."""

    node: Node
    form: int


def residual_branches(network: nn.Module, example: Inputs) -> dict[str, Branch]:
    """The innermost branches of a network by their first module with layers, such as attention and feed-forward apart.

    A branch ends in a module whose output is a term of a sum, is used nowhere else, and depends on another term. Its
    modules are the outermost ones whose parameters have no effect without that term. In a copy with random weights,
    the network computes the same with zero parameters in them, with zeros in their place, and without the term.

    Args:
        network: not modified.
        example: an input batch that the network takes, on its device.
    Returns: name -> the branch's modules, with their number of outputs as in `Plan.branches`.
    """
    probe, inputs = randomised(network), drawn(example)
    outputs, ends = _traced(probe, inputs)
    found: list[tuple[frozenset[nn.Parameter], str, Branch]] = []
    for term in _removable_terms(outputs, {end.node for end in ends.values()}):
        only = _parameters(_upstream([term])) - _parameters(_upstream(outputs, without=term))
        branch = {name: ends[name].form for name in _outermost(probe, only, ends)}
        last = next((name for name in branch if ends[name].node is term), None)
        if last is not None and (layers := [n for n in branch if _has_layers(probe.get_submodule(n))]):
            found.append((only, last, {layers[0]: 0} | branch))
    innermost = [(last, branch) for only, last, branch in found if not any(other < only for other, _, _ in found)]
    calls, order = once_called(probe, inputs), list(ends)
    removable = [branch for last, branch in innermost if _removable(probe, inputs, calls, last, branch)]
    named = {next(iter(branch)): branch for branch in removable}
    return {name: named[name] for name in order if name in named}


def _traced(probe: nn.Module, inputs: Inputs) -> tuple[list[Node], dict[str, _End]]:
    """The nodes of the network's outputs, and the ends of all modules that are called once and return tensors."""
    ends: dict[str, list[_End]] = {}

    def keep(call: Call) -> None:
        several = isinstance(call.output, tuple) and len(call.output) > 0
        first = call.output[0] if several else call.output
        node = first.grad_fn if isinstance(first, Tensor) else None
        ends.setdefault(call.name, []).append(_End(node, len(call.output) if several else 0))

    def in_graph(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor

    modules = {name: module for name, module in probe.named_modules() if name}
    with evaluating(probe), observing(modules, after=keep), torch.enable_grad():
        nodes = [tensor.grad_fn for tensor in output_tensors(call_network(probe, mapped(inputs, in_graph)))]
    once = {name: ends[name][0] for name in modules if len(ends.get(name, ())) == 1}
    return [n for n in nodes if n is not None], {name: end for name, end in once.items() if end.node is not None}


def _inputs_of(node: Node) -> list[Node]:
    return [before for before, _ in node.next_functions if before is not None]


def _upstream(nodes: Iterable[Node], without: Node = None) -> set[Node]:
    """All nodes on which these depend, with themselves, on paths that avoid one node."""
    seen, todo = set[Node](), list(nodes)
    while todo:
        node = todo.pop()
        if node is not without and node not in seen:
            seen.add(node)
            todo += _inputs_of(node)
    return seen


def _parameters(nodes: Iterable[Node]) -> frozenset[nn.Parameter]:
    return frozenset(node.variable for node in nodes if hasattr(node, "variable"))


def _removable_terms(outputs: Sequence[Node], ends: Collection[Node]) -> Iterator[Node]:
    """Terms among `ends` of sums of two or more that are used once and depend on another term."""
    nodes = _upstream(outputs)
    uses = Counter([n for node in nodes for n in _inputs_of(node)] + list(outputs))

    def terms(node: Node) -> list[Node]:
        """Those of a sum, in which sums that are used nowhere else are part of it."""
        return [
            term
            for before in _inputs_of(node)
            for term in (terms(before) if _is_sum(before) and uses[before] == 1 else [before])
        ]

    parts = {inner for node in nodes if _is_sum(node) for inner in _inputs_of(node) if uses[inner] == 1}
    for node in nodes:
        if _is_sum(node) and node not in parts:
            summed = terms(node)
            for term in summed:
                if term in ends and uses[term] == 1 and not _upstream([term]).isdisjoint({*summed} - {term}):
                    yield term


def _is_sum(node: Node) -> bool:
    return bool(node.name() == "AddBackward0" and len(_inputs_of(node)) > 1)


def _outermost(probe: nn.Module, parameters: Collection[nn.Parameter], called: Collection[str]) -> list[str]:
    """The outermost of the called modules that have no other parameters than these."""
    found: list[str] = []
    for name, module in probe.named_modules():
        own = list(module.parameters())
        if name in called and own and not inside(name, found) and all(p in parameters for p in own):
            found.append(name)
    return found


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, LAYERS) for inner in module.modules())


def _removable(probe: nn.Module, inputs: Inputs, calls: Mapping[str, Call], last: str, branch: Branch) -> bool:
    """Whether silent modules, zeros in their place, and zeros in place of the last one's output all give the same."""
    modules = {name: probe.get_submodule(name) for name in branch}
    parts = [name.split(".")[:-1] for name in branch]
    depth = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    around = [".".join(parts[0][:i]) for i in range(depth, 0, -1)]
    call = next((calls[name] for name in around if name in calls), None)

    def outputs() -> list[Tensor]:
        return output_tensors(call_network(probe, inputs) if call is None else again(call))

    def zeros(call: Call) -> Any:
        return (0 * call.output[0], *call.output[1:]) if branch[last] else 0 * call.output

    with evaluating(probe):
        with observing({last: modules[last]}, after=zeros):
            expected = outputs()
        before = {name: {key: t.clone() for key, t in m.state_dict().items()} for name, m in modules.items()}
        for module in modules.values():
            silence(module)
        silent = outputs()
        for name, module in modules.items():
            load_tensors(module, before[name])
        with _replaced(probe, {name: ZeroBranch(modules[name], form) for name, form in branch.items()}):
            without = _tried(outputs)
    return _alike(expected, silent) and without is not None and _alike(expected, without)


def _tried(outputs: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    try:
        return outputs()
    except Exception:  # whatever the network's own code raises for mismatched shapes
        return None


def _alike(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(tensors) == len(others) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(tensors, others, strict=True)
    )


@contextmanager
def _replaced(network: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the place of some, inside."""
    before = {name: network.get_submodule(name) for name in others}
    try:
        for name, module in others.items():
            network.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            network.set_submodule(name, module)
