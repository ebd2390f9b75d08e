"""A linear layer whose weight is stored transposed: the small factor of an output layer tied to an embedding."""

from torch import Tensor, nn
from torch.nn.functional import linear


class TransposedLinear(nn.Module):
    """y = W^T x with W (in_features, out_features), a parameter that another layer uses too; no bias."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
