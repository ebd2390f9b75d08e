"""The distributions of targets that outputs describe, each with its predictions and its divergence.

Outputs are (N, K, ...): scores of K classes, logits of K labels, or means of K values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid


@dataclass(frozen=True)
class Distribution:
    """A family of distributions.

    Attributes:
        name: in messages.
        terms: (reference, outputs), both (N, K, ...) -> terms (N, K, ...) whose sums over K are
            KL(reference || outputs).
        predictions: outputs (N, K, ...) -> discrete predictions; None if there are none, as in a regression.
        expected: outputs (N, K, ...) -> their probabilities or means (N, K, ...).
    """

    name: str
    terms: Callable[[Tensor, Tensor], Tensor]
    predictions: Callable[[Tensor], Tensor] | None = None
    expected: Callable[[Tensor], Tensor] = torch.clone

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """KL(reference || outputs) of every prediction (N, ...), from outputs (N, K, ...)."""
        return self.terms(reference, outputs).sum(dim=1)


def _of_classes(reference: Tensor, outputs: Tensor) -> Tensor:
    p, q = log_softmax(reference, dim=1), log_softmax(outputs, dim=1)
    return kl_div(q, p, reduction="none", log_target=True)


def _of_labels(reference: Tensor, outputs: Tensor) -> Tensor:
    yes = reference.sigmoid() * (logsigmoid(reference) - logsigmoid(outputs))
    no = (-reference).sigmoid() * (logsigmoid(-reference) - logsigmoid(-outputs))
    return yes + no


CATEGORICAL = Distribution("classes", _of_classes, lambda x: x.argmax(dim=1), lambda x: x.softmax(dim=1))
"""One of K classes: outputs are its scores, softmax(outputs) their probabilities."""

BERNOULLI = Distribution("labels", _of_labels, lambda x: (x > 0).to(torch.int64), torch.sigmoid)
"""K independent labels: sigmoid(outputs) are their probabilities."""

GAUSSIAN = Distribution("numbers", lambda reference, outputs: (reference - outputs).square() / 2)
"""K numbers with variance 1: outputs are their means."""
