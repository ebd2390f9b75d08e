"""How far a network is from another one as a function: its outputs on inputs with random noise.

Source: "Lost in Pruning", Liebenwein et al. 2021, https://arxiv.org/abs/2103.03014, section 4
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiment.datasets.image_data import Images
from experiment.errors import DataError
from experiment.inputs import call_network
from experiment.layers.forward_pass import evaluating
from experiment.random_streams import generator
from experiment.tasks.task import Metric, Task

MOST_INPUTS, BATCH_SIZE = 1_000, 100


@dataclass
class _Sums:
    """Sums over the inputs at one level of noise."""

    equal: float = 0.0
    distance: float = 0.0
    predictions: int = 0
    scores: list[Tensor] = field(default_factory=list)

    def figure(self, metric: Metric) -> float:
        return metric.figure((torch.cat(self.scores) if metric.joined else torch.stack(self.scores).sum(0)).cpu())


def noise_response(
    network: nn.Module, reference: nn.Module, images: Images, task: Task, levels: Sequence[float], seed: int
) -> list[dict[str, float]]:
    """Compare two networks on the same noisy inputs: at most 1,000 of a test set, evenly spread.

    The noise is uniform in [-eps, eps], independent for every value of an input after its transforms.

    Args:
        network, reference: on the device of the images.
        levels: eps.
        seed: of the noise.
    Returns: for every level `eps`; `agreement`, the share of equal predictions; `distance`, the mean Euclidean norm of
        the difference of the two softmax outputs; `excess_error`, by how much the primary metric is worse than without
        noise.
    Raises: DataError: the inputs are not numbers.
    """
    sums = {eps: _Sums() for eps in (0.0, *levels)}
    places = torch.linspace(0, len(images) - 1, min(MOST_INPUTS, len(images)), dtype=torch.float64).round().long()
    with evaluating(network), evaluating(reference), torch.inference_mode():
        for i, indices in enumerate(torch.split(places, BATCH_SIZE)):
            x, y = images.take(indices)
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise DataError("noise is added to inputs that are one tensor of numbers. Remove noise from measure.")
            noise = (2 * torch.rand(x.shape, generator=generator("noise", seed, i)) - 1).to(x.device)
            for eps, total in sums.items():
                outputs, expected = (task.outputs(call_network(n, x + eps * noise)) for n in (network, reference))
                _add(total, outputs, expected, y, task)
    primary = task.primary
    sign = 1 if primary.better == "higher" else -1
    clean = sums[0.0].figure(primary)
    return [
        {
            "eps": eps,
            "agreement": sums[eps].equal / sums[eps].predictions,
            "distance": sums[eps].distance / sums[eps].predictions,
            "excess_error": sign * (clean - sums[eps].figure(primary)),
        }
        for eps in levels
    ]


def _add(total: _Sums, outputs: Tensor, expected: Tensor, targets: Tensor, task: Task) -> None:
    meaning = task.distribution
    assert meaning.predictions is not None
    equal = meaning.predictions(outputs) == meaning.predictions(expected)
    distance = (meaning.expected(outputs.double()) - meaning.expected(expected.double())).norm(dim=1)
    total.equal += float(equal.double().mean()) * distance.numel()
    total.distance += float(distance.sum())
    total.predictions += distance.numel()
    total.scores.append(task.primary.update(outputs.float(), targets))
