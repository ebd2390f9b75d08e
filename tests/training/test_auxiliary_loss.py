"""The auxiliary loss: half the cross entropy of the second output in training, none of it in an evaluation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiment.datasets.python_samples import PairData
from experiment.random_streams import generator, seeded
from experiment.tasks import find_task
from experiment.training.evaluation import evaluate
from experiment.training.schedule import Schedule
from experiment.training.settings import TrainSettings
from experiment.training.step import TrainingStep

CPU = torch.device("cpu")


class TwoHeads(nn.Module):
    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.main, self.second = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 3, padding=1) if auxiliary else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {"out": self.main(x)}
        return out if self.second is None else {**out, "aux": self.second(x)}


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("loss", ["CrossEntropyLossWithAuxiliary", "CrossEntropyLoss"])
def test_loss_and_gradients_are_those_written_out_here(loss: str, auxiliary: bool) -> None:
    with seeded("heads"):
        network = TwoHeads(auxiliary)
    x = torch.rand(4, 1, 5, 5, generator=generator("x"))
    y = torch.randint(0, 3, (4, 5, 5), generator=generator("y"))
    y[:, 0] = 255
    settings = TrainSettings(1, 4, task="segmentation", loss=loss, optimizer_kwargs={"lr": 0.0})
    step = TrainingStep(network, settings, Schedule(settings, 1), CPU, model=network)
    found, outputs, _ = step(x, y, 4)
    returned = network(x)
    main = cross_entropy(returned["out"], y, ignore_index=255)
    counted = auxiliary and loss == "CrossEntropyLossWithAuxiliary"
    expected = main + 0.5 * cross_entropy(returned["aux"], y, ignore_index=255) if counted else main
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(outputs, returned["out"].detach())
    gradients = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient)
    task = find_task("segmentation")
    measured = evaluate(network, PairData("pairs", (x, y), CPU, task), task=task, loss=loss, device=CPU)
    assert measured.loss == pytest.approx(float(main.detach()), rel=1e-6)
