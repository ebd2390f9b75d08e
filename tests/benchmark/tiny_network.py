"""A network so small that what remains of a run is the program's own time; for `many_cells.py`."""

from torch import nn


def tiny(input_shape: tuple[int, ...], output_size: int) -> nn.Module:
    """A network of 1,674 parameters for 28x28 images."""
    layers = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, output_size))
