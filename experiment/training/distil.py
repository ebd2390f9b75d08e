"""Knowledge distillation: a network learns from the logits of another one, its teacher, on the same images.

L = (1 - a) loss(z_s, y) + a T^2 KL(p(z_t / T) || p(z_s / T)), z_s and z_t the outputs (N, K, ...) of the network and
its teacher, p(z) the distribution of the targets that outputs z describe: softmax(z) for classes. T^2 keeps the
gradients of both terms equally large at any temperature T.

Source: Hinton, Vinyals & Dean 2015, https://arxiv.org/abs/1503.02531
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiment.inputs import Inputs, call_network
from experiment.layers.copied_network import copied
from experiment.tasks import find_task
from experiment.tasks.distributions import Distribution
from experiment.tensor_file import load_tensors
from experiment.training.distributed import Team
from experiment.training.evaluation import forward_precision
from experiment.training.settings import DistillationSpec, TrainSettings

Teacher = Callable[[Inputs], Tensor]


def make_teacher(network: nn.Module, settings: TrainSettings, device: torch.device, team: Team) -> Teacher:
    """A function from inputs to the outputs (N, K, ...) of a trained network, in float32.

    It computes with a copy of the network, in eval mode and without gradients, at the precision and in the memory
    format of the training.

    Args:
        team: the processes that train together, each of which makes a teacher of the same structure; they use the
            weights of the first process.
    """
    teacher = copied(network).to(device).eval().requires_grad_(False)
    if settings.channels_last:
        teacher.to(memory_format=torch.channels_last)
    if team.size > 1:
        load_tensors(teacher, team.first_state(dict(teacher.state_dict()), device))
    forward = torch.compile(teacher, dynamic=None) if settings.compiled else teacher
    task = find_task(settings.task)

    def outputs_of(x: Inputs) -> Tensor:
        with torch.no_grad(), forward_precision(device, settings.precision):
            outputs = task.outputs(call_network(forward, x))
        return outputs.float()

    return outputs_of


def mixed_loss(
    loss: Tensor,
    z_student: Tensor,
    z_teacher: Tensor,
    spec: DistillationSpec,
    distribution: Distribution,
    *,
    reduction: object = "mean",
    counted: Tensor | None = None,
) -> Tensor:
    """The weighted sum of the loss on targets and the divergence from the teacher.

    Args:
        loss: on the targets.
        z_student, z_teacher: outputs (N, K, ...).
        distribution: of the targets, which the outputs describe.
        reduction: "sum" if `loss` is a sum over predictions; otherwise both terms are means.
        counted: which predictions (N, ...) have a target; None for all.
    """
    T, a = spec.temperature, spec.alpha
    terms = distribution.terms(z_teacher / T, z_student / T)
    number: int | Tensor = terms[:, 0].numel()
    if counted is not None and counted.shape == terms[:, 0].shape:
        terms = torch.where(counted.unsqueeze(1), terms, 0.0)
        number = counted.sum().clamp(min=1)
    divergence = terms.sum() if reduction == "sum" else terms.sum() / number
    return (1 - a) * loss + a * T**2 * divergence
