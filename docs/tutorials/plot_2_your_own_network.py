"""
Compress your own network
=========================

``compress`` takes any ``torch.nn.Module`` and a method, and returns a smaller network. No parameter file is
needed.
"""

# %%
# A trained network
# -----------------
#
# Any network will do. This one classifies 8x8 images of digits.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from experiment import compress, compress_many, load_network, save_network

images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
train, test = slice(0, 1400), slice(1400, None)


def fit(net, epochs, lr):
    """Train with Adam, in place."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(1400, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def accuracy(net):
    """Share of the test images that are classified correctly."""
    return (net(images[test]).argmax(1) == labels[test]).float().mean().item()


def make_network():
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


torch.manual_seed(0)
net = make_network()
fit(net, epochs=10, lr=2e-3)
print(f"{sum(p.numel() for p in net.parameters()):,} parameters, accuracy {accuracy(net):.3f}")

# %%
# Compress it
# -----------
#
# ALDS replaces layers by low-rank factors. ``keep`` is the share of the parameters to keep and is never exceeded.
# ``example`` is a batch of inputs; it traces the network. ``net`` itself is unchanged.

result = compress(net, "ALDS", keep=0.1, example=images[:1])
print(result)
print(result.network)

# %%
# ``result.layers`` is a DataFrame with one row per layer: its size before and after, and what the method decided.

result.layers[["layer", "kind", "parameters_before", "parameters", "rank", "groups"]]

# %%
# Retrain it
# ----------
#
# ``result.network`` is made of plain torch layers: train it like any other network.

before = accuracy(result.network)
fit(result.network, epochs=3, lr=1e-3)
print(f"accuracy {before:.3f} after compression, {accuracy(result.network):.3f} after retraining")

# %%
# Save and load it
# ----------------
#
# The file holds the weights and the decisions, never a pickled object. To load it, pass the original network.

path = Path(tempfile.mkdtemp()) / "small.pt"
save_network(result, path)
loaded = load_network(path, network=make_network())
print(f"{path.stat().st_size:,} bytes, accuracy {accuracy(loaded):.3f}")

# %%
# Several methods, several sizes
# ------------------------------
#
# ``compress_many`` analyses the network once and returns one result for each keep ratio. Some methods look at data:
# KLDS, for example, needs a few training images. Nothing is retrained here.

keeps = [0.5, 0.3, 0.2, 0.1, 0.05]
for method, data in {"WT": None, "FT": None, "ALDS": None, "KLDS": images[:256]}.items():
    results = list(compress_many(net, method, keeps=keeps, example=images[:1], data=data))
    plt.plot(
        [100 * r.keep_parameters for r in results], [100 * accuracy(r.network) for r in results], "o-", label=method
    )
plt.axhline(100 * accuracy(net), color="gray", linestyle=":", label="uncompressed")
plt.xscale("log")
plt.xticks([100 * keep for keep in keeps], [f"{100 * keep:g}" for keep in keeps])
plt.minorticks_off()
plt.xlabel("parameters kept (%)")
plt.ylabel("accuracy (%)")
plt.legend()
plt.tight_layout()
