"""One of the processes of test_distributed.py: runs every scenario, and writes what came out."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_images
from torch import Tensor, nn

from experiment.datasets.python_samples import PairData
from experiment.errors import TrainingDiverged
from experiment.layers.masks import add_masks
from experiment.layers.shared_batchnorm import shared_form
from experiment.random_streams import generator, seeded
from experiment.tasks import find_task
from experiment.training.distributed import Team
from experiment.training.evaluation import evaluate
from experiment.training.loop import TrainingLoop
from experiment.training.settings import DistillationSpec, PenaltySpec, SchedulerSpec, TrainSettings

CPU = torch.device("cpu")
SETTINGS = TrainSettings(
    num_epochs=3,
    batch_size=16,
    optimizer_kwargs={"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    schedulers=(
        SchedulerSpec("ReduceLROnPlateau", {"patience": 0, "factor": 0.5}),
        SchedulerSpec("WarmupLR", {}, {"warmup_epoch": 1}),
    ),
    early_stop_epoch=1,
)
IMAGES, VALID = make_images(91), make_images(301, "valid")  # last batches of 11 and of 45, shared by two


def make_network(team: Team) -> nn.Sequential:
    """Every process makes other weights: those of the first count."""
    with seeded("network", team.rank):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64, 8), nn.BatchNorm1d(8, momentum=None, affine=False), nn.ReLU(), nn.Linear(8, 4),
        )  # fmt: skip


def outcome(
    team: Team,
    network: nn.Module,
    settings: TrainSettings = SETTINGS,
    until: int | None = None,
    data: tuple[Any, Any] = (IMAGES, VALID),
    **more: Any,
) -> dict[str, Any]:
    layers = [type(module) for module in network.modules()]
    loop = TrainingLoop(network, data[0], settings, valid=data[1], stream=("t",), device="cpu", team=team, **more)
    records = loop.run(until)
    assert [type(module) for module in network.modules()] == layers, "plain torch layers again"
    told = [
        {k: v for k, v in dataclasses.asdict(r).items() if k not in ("seconds", "values", "valid")} | r.values
        | {f"valid_{k}": v for k, v in r.valid.items()} for r in records
    ]  # fmt: skip
    return {"records": told, "state": network.state_dict()}


def batchnorm(team: Team, folder: Path) -> dict[str, Any]:
    return outcome(team, make_network(team))


def masked(team: Team, folder: Path) -> dict[str, Any]:
    """The first process knows the masks, the others know that there are some."""
    network = make_network(team)
    keep = torch.rand(8, 64, generator=generator("mask")) < 0.3
    add_masks(network, {"5.weight": keep if team.rank == 0 else torch.ones_like(keep)})
    return outcome(team, network)


def weighted(team: Team, folder: Path) -> dict[str, Any]:
    """A mean over weights that differ from process to process."""
    loss = {"weight": [5.0, 1.0, 0.5, 0.1], "label_smoothing": 0.1}
    return outcome(team, make_network(team), dataclasses.replace(SETTINGS, loss_kwargs=loss))


def low_precision(team: Team, folder: Path) -> dict[str, Any]:
    return outcome(team, make_network(team), dataclasses.replace(SETTINGS, precision="bf16", channels_last=True))


def continued(team: Team, folder: Path) -> dict[str, Any]:
    """Stopped after an epoch; taken up by the first process, which alone knows the file."""
    checkpoint = folder / "checkpoint.pt" if team.rank == 0 else None
    outcome(team, make_network(team), until=1, checkpoint=checkpoint)
    return outcome(team, make_network(team), checkpoint=checkpoint)


def distilled(team: Team, folder: Path) -> dict[str, Any]:
    """The first process has the teacher, the others one of its structure; the last batch's parts differ in size."""
    settings = dataclasses.replace(SETTINGS, distillation=DistillationSpec(3.0, 0.6))
    with seeded("teacher", team.rank):
        teacher = make_network(team)
        for parameter in teacher.parameters():
            nn.init.normal_(parameter, std=0.5)
    return outcome(team, make_network(team), settings, teacher=teacher)


class Keywords(nn.Module):
    def __init__(self, team: Team) -> None:
        super().__init__()
        self.body = make_network(team)

    def forward(self, pixels: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"unused": pixels, "logits": self.body(pixels * factor[:, None, None, None])}


def keywords(team: Team, folder: Path) -> dict[str, Any]:
    """Inputs by keyword, outputs in a dictionary, with a teacher."""

    def of_two(images: Any) -> PairData:
        x, y = images.first(len(images))
        return PairData("keywords", {"pixels": x, "factor": torch.linspace(0.5, 2, len(y)), "labels": y}, CPU)

    settings = dataclasses.replace(SETTINGS, distillation=DistillationSpec(3.0, 0.6))
    data = of_two(IMAGES), of_two(VALID)
    return outcome(team, Keywords(team), settings, data=data, teacher=Keywords(team))


def penalised(team: Team, folder: Path) -> dict[str, Any]:
    penalties = (PenaltySpec(l1=0.01, l2=0.05, proximal=True, decoupled=True), PenaltySpec(("8",), l1=0.01, l2=0.05))
    return outcome(team, make_network(team), dataclasses.replace(SETTINGS, penalties=penalties))


def diverging(team: Team, folder: Path) -> dict[str, Any]:
    network = make_network(team)
    network[1], network[6] = nn.Identity(), nn.Identity()  # BatchNorm would hold the activations down
    try:
        outcome(team, network, dataclasses.replace(SETTINGS, optimizer_kwargs={"lr": 1e30}, schedulers=()))
    except TrainingDiverged as error:
        return {"error": str(error)}
    return {}


def dropout(team: Team, folder: Path) -> dict[str, Any]:
    """Inputs to a dropped layer, as the last batch leaves them."""
    network, dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4)), []
    network[1].register_forward_hook(
        lambda _, __, y: dropped.append((y == 0)[:4].clone()) if network.training else None
    )
    TrainingLoop(network, IMAGES, SETTINGS, valid=VALID, stream=("t",), device="cpu", team=team).run()
    return {"dropped": dropped[0]}


def layers(team: Team, folder: Path) -> dict[str, Any]:
    """Output, gradients and statistics of BatchNorm layers; in a team of those that share theirs."""
    found: dict[str, Any] = {}
    x = torch.randn(7, 3, 5, generator=generator("x"))
    for name, layer in {
        "plain": nn.BatchNorm1d(3),
        "not affine": nn.BatchNorm1d(3, affine=False),
        "cumulative": nn.BatchNorm1d(3, momentum=None),
        "untracked": nn.BatchNorm1d(3, track_running_stats=False),
    }.items():
        used = layer if team.size == 1 else shared_form(layer)
        own = x.clone().requires_grad_() if team.size == 1 else x[team.rank :: team.size].clone().requires_grad_()
        for _ in range(2):
            y = used(own)
        _sum(team, (y * torch.arange(15.0).view(3, 5)).square().sum())[0].backward()
        gradients = [own.grad, *(_sum(team, p.grad)[0] for p in layer.parameters() if p.grad is not None)]
        evaluated = used.eval()(own.detach())
        found[name] = {"y": y.detach(), "gradients": gradients, "state": layer.state_dict(), "evaluated": evaluated}
    return found


def _sum(team: Team, value: Tensor) -> tuple[Tensor]:
    """A value, or a gradient, that is the sum of those of all processes."""
    if team.size > 1 and not value.requires_grad:
        value = team.total(value.clone())
    return (value,)


def gradients(team: Team, folder: Path) -> dict[str, Any]:
    """Of one batch that does not divide, in float64, where nothing hides behind rounding."""
    x, y = torch.rand(15, 1, 8, 8, generator=generator("x")).double(), torch.arange(15) % 4
    own = slice(team.rank, None, team.size)
    network = make_network(Team()).double().train()
    with team.training(network) as model:
        logits, labels = team.whole(model(x[own]), y[own], 15)
        loss = nn.functional.cross_entropy(logits, labels, weight=torch.tensor([5.0, 1.0, 0.5, 0.1]).double())
        loss.backward()
    return (
        {name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers()) | {"loss": loss.data}
    )


def evaluated(team: Team, folder: Path) -> dict[str, Any]:
    network = make_network(Team())
    return evaluate(network, VALID, device="cpu", batch_size=64, team=team).columns


class Segmenting(nn.Module):
    """Maps of classes, from a main and an auxiliary head that share a body."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        with seeded("segmenting", team.rank):
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            self.head, self.second = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"out": self.head(x), "aux": self.second(x)}


def maps_of(images: Any) -> PairData:
    """Pixels in three classes by their values, the brightest without a class."""
    x, _ = images.first(len(images))
    y = (x[:, 0] * 4).long().clamp(max=3)
    return PairData("maps", (x, torch.where(y == 3, 255, y)), CPU, find_task("segmentation"))


def segmenting(team: Team, folder: Path, loss: str = "CrossEntropyLossWithAuxiliary") -> dict[str, Any]:
    settings = dataclasses.replace(SETTINGS, task="segmentation", loss=loss)
    return outcome(team, Segmenting(team), settings, data=(maps_of(IMAGES), maps_of(VALID)))


def unused_head(team: Team, folder: Path) -> dict[str, Any]:
    """A loss that leaves out the auxiliary head."""
    return segmenting(team, folder, "CrossEntropyLoss")


class Routed(nn.Module):
    """A head that no loss needs, and two experts: an image with a bright corner takes the second."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.body, self.spare = make_network(team), nn.Linear(64, 4)
        self.experts = nn.ModuleList([nn.Linear(64, 4), nn.Linear(64, 4)])

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x.flatten(1))
        bright = x[:, 0, 0, 0] > 0.9
        y: Tensor = self.body(x)
        for expert, chosen in zip(self.experts, (~bright, bright), strict=True):
            if chosen.any():
                y = y + torch.where(chosen[:, None], expert(x.flatten(1)), 0)
        return y


def routed(team: Team, folder: Path) -> dict[str, Any]:
    """Parameters without a gradient: one in every process, others in some steps of one process."""
    with seeded("routed", team.rank):
        return outcome(team, Routed(team))


SCENARIOS = (
    batchnorm, routed, masked, weighted, low_precision, continued, distilled, keywords, penalised, diverging, dropout,
    layers, gradients, evaluated, segmenting, unused_head,
)  # fmt: skip


def main(folder: Path) -> None:
    """Alone, or with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment as one of several."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size > 1:
        dist.init_process_group("gloo")
    team = Team(rank, size)
    torch.save({scenario.__name__: scenario(team, folder) for scenario in SCENARIOS}, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()
