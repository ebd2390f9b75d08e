"""A linear layer with a block-diagonal weight: the encoder of a linear layer that is decomposed in groups."""

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """y_g = W_g x_g for `groups` contiguous blocks of features; no bias.

    Shape suffixes: G = groups, O = outputs per group, I = inputs per group. `weight` is (G * O, I), as in a grouped
    convolution.
    """

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        super().__init__()
        if in_features % groups or out_features % groups:
            raise ValueError(f"groups must divide both features. Got {in_features}, {out_features}, groups {groups}.")
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.register_parameter("bias", None)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x_GI = torch.unflatten(x, -1, (self.groups, self.in_features // self.groups))
        weight_GOI = self.weight.reshape(self.groups, self.out_features // self.groups, -1)
        return torch.einsum("...gi,goi->...go", x_GI, weight_GOI).flatten(-2)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, groups={self.groups}"
