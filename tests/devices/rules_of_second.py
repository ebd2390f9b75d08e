"""The device `second` itself: it allows what CUDA allows, and a module with a tensor of the CPU fails on it."""

from collections.abc import Callable

import pytest
import torch
from second_device import SECOND, WrongDevice, register
from torch import Tensor, nn

register()


class Layer(nn.Module):
    """A linear layer, and a function of its outputs that may hold tensors of the CPU."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.of = nn.Linear(3, 3), of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.layer(x))


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "number": lambda x: x * torch.tensor(2.0),
    "index": lambda x: x[torch.tensor([0, 1])],
    "written": lambda x: x.detach().index_put_((torch.tensor([0]),), torch.tensor(1.0)),
    "generator": lambda x: x + torch.rand(3, device=x.device, generator=torch.Generator(x.device).manual_seed(0)),
}
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "elementwise": lambda x: x + torch.ones(3),
    "product": lambda x: x @ torch.ones(3, 3),
    "joined": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "gathered": lambda x: x.gather(0, torch.zeros(1, 3, dtype=torch.int64)),
    "output": lambda x: torch.ones(3).add_(x.sum(0)),
    "values": lambda x: x.detach().index_put_((torch.tensor([0]),), torch.ones(3)),
    "generator": lambda x: x + torch.rand(3, device=SECOND, generator=torch.Generator()),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "every device": lambda x: _forked(x),
}


def _forked(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return x


@pytest.mark.parametrize("name", RIGHT)
def test_what_cuda_allows_is_right(name: str) -> None:
    x = torch.randn(2, 3)
    module = Layer(RIGHT[name])
    expected = module(x)
    found = module.to(SECOND)(x.to(SECOND))
    assert found.device.type == SECOND
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("name", WRONG)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with pytest.raises((WrongDevice, TypeError, AttributeError)):
        Layer(WRONG[name]).to(SECOND)(torch.randn(2, 3, device=SECOND))
