"""Knowledge distillation: a network learns from the logits of another one, its teacher, on the same images.

L = (1 - a) loss(z_s, y) + a T^2 KL(softmax(z_t / T) || softmax(z_s / T)), z_s and z_t the logits (N, classes) of the
network and its teacher. T^2 keeps the gradients of both terms equally large at any temperature T.

Source: Hinton, Vinyals & Dean 2015, https://arxiv.org/abs/1503.02531
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from experiment.inputs import Inputs, call_network, scored
from experiment.layers.copied_network import copied
from experiment.tensor_file import load_tensors
from experiment.training.distributed import Team
from experiment.training.evaluation import forward_precision
from experiment.training.settings import DistillationSpec, TrainSettings

Teacher = Callable[[Inputs], Tensor]


def make_teacher(network: nn.Module, settings: TrainSettings, device: torch.device, team: Team) -> Teacher:
    """A function from images to the logits of a trained network, in float32.

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

    def logits_of(x: Inputs) -> Tensor:
        with torch.no_grad(), forward_precision(device, settings.precision):
            logits = scored(call_network(forward, x))
        return logits.float()

    return logits_of


def mixed_loss(
    loss: Tensor, z_student: Tensor, z_teacher: Tensor, spec: DistillationSpec, reduction: object = "mean"
) -> Tensor:
    """The weighted sum of the loss on labels and the divergence from the teacher.

    Args:
        loss: on the labels.
        z_student, z_teacher: logits (N, classes), or log-probabilities.
        reduction: "sum" if `loss` is a sum over images; otherwise both terms are means.
    """
    T, a = spec.temperature, spec.alpha
    how = "sum" if reduction == "sum" else "batchmean"
    p_student, p_teacher = log_softmax(z_student / T, dim=1), log_softmax(z_teacher / T, dim=1)
    return (1 - a) * loss + a * T**2 * kl_div(p_student, p_teacher, reduction=how, log_target=True)
