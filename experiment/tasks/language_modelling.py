"""Language modelling: the next token at every position of a text.

Shape suffixes: N = samples, T = positions, V = tokens of the vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiment.errors import CompressionError, DataError
from experiment.inputs import as_numbers, in_words, scored
from experiment.tasks.classification import top
from experiment.tasks.task import Metric, Task

IGNORED = -100  # the target of a position without a next token; torch's and Hugging Face's


def token_scores(raw: object) -> Tensor:
    """The scores (N, V, T) in what a network returns, whose scores are (N, T, V).

    Raises: CompressionError: they have other dimensions.
    """
    scores = scored(raw)
    if scores.dim() != 3:
        raise CompressionError(
            "language modelling needs scores of every token at every position, (samples, positions, outputSize). "
            f"The network returned {in_words(scores)}."
        )
    return scores.transpose(1, 2)


def next_tokens(where: str, target: object) -> Tensor:
    """Token ids (T,), of any type of integer, as int64.

    Raises: DataError: they are something else.
    """
    ids = as_numbers(target)
    if ids is None or ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise DataError(
            f"{where}: expected the next token at every position as target, integers of shape (positions,). "
            f"Got {in_words(target)}."
        )
    return ids.long()


def check_tokens(where: str, output_size: int, targets: Tensor) -> None:
    """Check that token ids lie in the vocabulary, or are ignored.

    Raises: DataError: some do not.
    """
    wrong = (targets != IGNORED) & ((targets < 0) | (targets >= output_size))
    if bool(wrong.any()):
        sample, position = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{where}: token id {int(targets[sample, position])} beyond the vocabulary at position {position}; "
            f"expected 0 to {output_size - 1} with network.outputSize {output_size}, or {IGNORED} to ignore a "
            "position. Set outputSize to the size of the tokenizer's vocabulary."
        )


def _surprise(outputs: Tensor, y: Tensor) -> Tensor:
    losses = cross_entropy(outputs, y, ignore_index=IGNORED, reduction="none")
    return torch.stack([losses.sum(dtype=torch.float64), (y != IGNORED).sum(dtype=torch.float64)])


def _perplexity(sums: Tensor) -> float:
    return float((sums[0] / sums[1]).exp())


TASK = Task(
    "language modelling",
    metrics=(
        Metric("perplexity", "perplexity", _surprise, _perplexity, better="lower", unit="value", mappable=True),
        replace(top(1, IGNORED), name="token_top1", title="token top-1"),
    ),
    losses=("CrossEntropyLoss", "NLLLoss"),
    target=next_tokens,
    check=check_tokens,
    outputs=token_scores,
    loss_kwargs={"ignore_index": IGNORED},
    vocabulary=True,
)
