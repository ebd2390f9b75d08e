"""A character-level GPT on Python's help topics and a vision transformer on CIFAR-10, trained in minutes on a core.

Shape suffixes: B = batch, N = tokens, D = width, H = heads, V = characters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from experiment.random_streams import generator

HELD_OUT = 2500  # images of the training set that no network is trained on
ALL_TOKENS = 2800  # steps after which a vision transformer is trained on all tokens, before on half of them
TESTED = 2000  # images of the test set that all networks are tested on
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Attention(nn.Module):
    """Multi-head attention with a Linear layer each for queries, keys and values, or one for all three."""

    def __init__(self, width: int, heads: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        names = ("qkv",) if fused else ("q", "k", "v")
        for name in names:
            setattr(self, name, nn.Linear(width, width * (3 if fused else 1)))
        self.fused = fused
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BND).chunk(3, -1) if self.fused else (self.q(x_BND), self.k(x_BND), self.v(x_BND))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed_BHND = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed_BHND.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal, fused=fused)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class GPT(nn.Module):
    """Predicts the next character; the embedding is the output layer's weight too."""

    def __init__(self, characters: int, context: int = 128, width: int = 128, depth: int = 5, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width, causal=True, fused=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        initialise(self)
        self.head.weight = self.tokens.weight

    def forward(self, tokens_BN: Tensor) -> Tensor:
        places = torch.arange(tokens_BN.shape[1], device=tokens_BN.device)
        x_BND = self.blocks(self.tokens(tokens_BN) + self.positions(places))
        return self.head(self.norm(x_BND))


class ViT(nn.Module):
    """Classifies images by the mean over the tokens of 4x4 patches."""

    def __init__(self, classes: int = 10, size: int = 32, width: int = 128, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, (size // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width, causal=False, fused=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialise(self)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Class scores (B, classes); `kept` names the tokens that are computed, all by default."""
        x_BND = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        x_BND = self.blocks(x_BND if kept is None else x_BND[:, kept])
        return self.head(self.norm(x_BND).mean(1))


def initialise(network: nn.Module) -> None:
    """Normal weights with a standard deviation of 0.02, biases at zero."""
    made = generator("benchmark", "initial weights")
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02, generator=made)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@dataclass(frozen=True)
class Task:
    """A network with its data.

    Attributes:
        make: makes the network with its first weights.
        loss: network, step -> the loss of the network on that step's batch.
        valid, test: inputs and targets (integers), as the network takes them.
        steps: of the training.
        cooldown: T and t: after 0.4 T steps the learning rate falls linearly to 0 at T, or from full in t steps to 0 at
            the end, whichever is less.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    steps: int
    cooldown: tuple[int, int]

    def rate(self, step: int) -> float:
        """The factor on the learning rate, in (0, 1]."""
        total, last = self.cooldown
        return min(1.0, (step + 1) / 100, (1 - step / total) / 0.6, (self.steps - step) / last)


def python_topics(context: int = 128) -> tuple[list[str], dict[str, Tensor]]:
    """The characters, and the parts train, valid and test as character numbers; a help topic is in one part only."""
    names = sorted(topics)
    order = torch.randperm(len(names), generator=generator("benchmark", "topics")).tolist()
    text = {
        "train": "".join(topics[names[i]] for i in order[: int(0.8 * len(order))]),
        "valid": "".join(topics[names[i]] for i in order[int(0.8 * len(order)) : int(0.9 * len(order))]),
        "test": "".join(topics[names[i]] for i in order[int(0.9 * len(order)) :]),
    }
    characters = ["", *sorted(set(text["train"]))]  # the first one stands for all that training does not show
    number = {character: i for i, character in enumerate(characters)}
    return characters, {part: torch.tensor([number.get(c, 0) for c in text[part]]) for part in text}


def windows(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Consecutive inputs (B, N) and the characters that follow each (B, N)."""
    count = (len(tokens) - 1) // context
    return tokens[: count * context].reshape(-1, context), tokens[1 : count * context + 1].reshape(-1, context)


def gpt_task(batch: int = 32, context: int = 128, steps: int = 900) -> Task:
    characters, parts = python_topics()

    def loss(network: nn.Module, step: int) -> Tensor:
        starts = torch.randint(len(parts["train"]) - context, (batch,), generator=generator("benchmark", "gpt", step))
        cut = torch.stack([parts["train"][i : i + context + 1] for i in starts.tolist()])
        return functional.cross_entropy(network(cut[:, :-1]).flatten(0, -2), cut[:, 1:].flatten())

    return Task(
        lambda: GPT(len(characters), context),
        loss,
        windows(parts["valid"], context),
        windows(parts["test"], context),
        steps,
        (steps, 1),
    )


def vit_task(data: Path, cache: Path, batch: int = 64) -> Task:
    images, labels = images_of(data / "CIFAR10-jpeg" / "train", cache / "train.pt")
    order = torch.randperm(len(images), generator=generator("benchmark", "held out"))
    held, train = order[:HELD_OUT], order[HELD_OUT:]

    def loss(network: nn.Module, step: int) -> Tensor:
        made = generator("benchmark", "vit", step)
        chosen = train[torch.randint(len(train), (batch,), generator=made)]
        half = torch.randperm(64, generator=made)[:32].sort().values
        scores = network(augmented(images[chosen], made), *([half] if step < ALL_TOKENS else []))
        return functional.cross_entropy(scores, labels[chosen])

    test_images, test_labels = images_of(data / "CIFAR10-jpeg" / "test", cache / "test.pt")
    some = torch.randperm(len(test_images), generator=generator("benchmark", "test"))[:TESTED]
    return Task(
        ViT,
        loss,
        (normalised(images[held]), labels[held]),
        (normalised(test_images[some]), test_labels[some]),
        3250,
        (4000, 600),
    )


def images_of(folder: Path, cache: Path) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, 32, 32) and class numbers of an image folder; decoded once."""
    if not cache.exists():
        files = sorted(folder.glob("*/*.jpg"))
        classes = sorted({file.parent.name for file in files})
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        labels = torch.tensor([classes.index(file.parent.name) for file in files])
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"images": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), "labels": labels}, cache)
    read = torch.load(cache, weights_only=True)
    return read["images"], read["labels"]


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augmented(images: Tensor, made: torch.Generator) -> Tensor:
    """Shifted by up to 4 pixels and mirrored, at random, each image by itself."""
    padded = functional.pad(normalised(images), (4, 4, 4, 4))
    tops, lefts = torch.randint(9, (2, len(images)), generator=made).tolist()
    cut = torch.stack([x[:, i : i + 32, j : j + 32] for x, i, j in zip(padded, tops, lefts, strict=True)])
    mirrored = torch.rand(len(images), generator=made) < 0.5
    return torch.where(mirrored[:, None, None, None], cut.flip(3), cut)


def optimizers_of(network: nn.Module, lr: float = 0.02) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else."""
    matrices = [p for n, p in network.named_parameters() if p.dim() == 2 and "blocks" in n]
    inside = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=0.15 * lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def train(task: Task, network: nn.Module, folder: Path, every: int = 50) -> None:
    """Train to the end, or continue from the checkpoint in `folder`; the outcome is the same."""
    optimizers, first, path = optimizers_of(network), 0, folder / "checkpoint.pt"
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if path.exists():
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["weights"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = saved["step"]
    network.train()
    for step in range(first, task.steps):
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * task.rate(step)
        loss = task.loss(network, step)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % every == 0 or step + 1 == task.steps:
            saved = {"weights": network.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(saved | {"step": step + 1}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            print(f"step {step + 1} of {task.steps}: loss {loss.item():.3f}", flush=True)
    network.eval()
