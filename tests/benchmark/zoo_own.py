"""Small networks of shapes that no library's builders have: recurrent layers, one and three dimensions, ties."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, CLASSES = 100, 32, 5


class Recurrent(nn.Module):
    """Embedding, two recurrent layers, classes from the last step."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = kind(WIDTH, 48, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.layers(self.embedding(tokens))
        return self.head(states[:, -1])


class Translator(nn.Module):
    """nn.Transformer between two embeddings, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=causal))


class Encoder(nn.Module):
    """nn.TransformerEncoder over tokens with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(10, WIDTH))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.positions).mean(1))


class UNet(nn.Module):
    """Two levels with a skip connection; transposed convolutions lead back up."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv3d, nn.BatchNorm3d)
        up = nn.ConvTranspose1d if dimensions == 1 else nn.ConvTranspose3d
        self.down = nn.Sequential(conv(2, 16, 3, padding=1), norm(16), nn.ReLU())
        self.deep = nn.Sequential(conv(16, 32, 3, stride=2, padding=1), norm(32), nn.ReLU())
        self.up = nn.Sequential(up(32, 16, 2, stride=2), norm(16), nn.ReLU())
        self.out = conv(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        return self.out(torch.cat([high, self.up(self.deep(high))], dim=1))


class TiedLanguageModel(nn.Module):
    """The embedding's weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(tokens)))


class TwoInputs(nn.Module):
    """An image and a vector, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.head = nn.Linear(96, CLASSES)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.vector(vector)], dim=1))


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def _tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), _tokens),
    "gru": (lambda: Recurrent(nn.GRU), _tokens),
    "transformer": (Translator, lambda: (_tokens(), _tokens())),
    "transformer_encoder": (Encoder, _tokens),
    "unet_1d": (lambda: UNet(1), lambda: torch.randn(2, 2, 16)),
    "unet_3d": (lambda: UNet(3), lambda: torch.randn(2, 2, 8, 8, 8)),
    "tied_embeddings": (TiedLanguageModel, _tokens),
    "grouped": (_grouped, lambda: torch.randn(2, 3, 16, 16)),
    "two_inputs": (TwoInputs, lambda: (torch.randn(2, 3, 16, 16), torch.randn(2, 8))),
}
