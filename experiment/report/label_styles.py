"""Names, colors, markers and line styles of labels: a label looks the same on every plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiment import escaping
from experiment.methods import TORCHPRUNE_NAMES

# Okabe and Ito's palette, which is safe for color-blind readers, without yellow, which is hard to see on white.
# Source: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1))
)  # fmt: skip
REFERENCE_COLOR = "#555555"

# Positions of known labels in the sequence of looks. Position p has color p mod 7 and dashes p div 7, so that labels
# that papers compare differ in color.
_PLACES = {
    "ALDS": 0, "FT": 1, "SVD-Energy": 2, "SVD": 3, "PCA": 4, "SVD-Error": 5, "WT": 6,
    "ALDS+": 7, "ThiNet": 8, "SVD-Nuclear": 9, "SNIP": 10, "Messi3": 11, "PFP": 12, "L-Rank": 13,
    "SiPP": 14, "ALDS-Error3": 15, "ALDS-Simple3": 16, "ALDS-Simple5": 17, "Messi5": 18, "SoftNet": 19, "Uniform": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a label is drawn; `filled` says whether its markers are solid."""

    color: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]
    filled: bool


@dataclass(frozen=True)
class LabelStyles:
    """Names and colors of labels, as set in a parameter file. Keys are labels or torchprune's class names.

    Attributes:
        names: label -> name to show, in which $...$ is mathematics.
        colors: label -> any color that matplotlib understands.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)

    def name(self, label: str) -> str:
        """The name to show on plots."""
        return _named(self.names, label) or label

    def plain(self, label: str) -> str:
        """The name to show in text, or the label if the name contains mathematics."""
        name = self.name(label)
        return label if "$" in name else name

    def quoted(self, label: str) -> str:
        """The name to show in a sentence, in quotation marks if it has a comma."""
        name = self.plain(label)
        return f'"{name}"' if "," in name else name

    def latex(self, label: str) -> str:
        """The name to show in LaTeX, in which plain formulas of the parameter file are kept."""
        name = self.name(label)
        formulas = escaping.latex_formulas(name) if name != label else None
        return escaping.latex(name) if formulas is None else formulas

    def looks(self, labels: Sequence[str]) -> dict[str, Look]:
        """A look for every label: known labels have a fixed one, the others get the remaining ones in order."""
        places = {label: _PLACES[label] for label in labels if label in _PLACES}
        taken = set(places.values())
        free = (place for place in range(len(_PLACES) + len(labels) + 1) if place not in taken)
        for label in labels:
            if label not in places:
                places[label] = next(free)
        return {label: self._look(label, place) for label, place in places.items()}

    def _look(self, label: str, place: int) -> Look:
        cycle = place // len(COLORS)
        color = _valid_color(_named(self.colors, label)) or COLORS[place % len(COLORS)]
        shifted = place + place // len(MARKERS)  # the second round pairs markers with other colors than the first
        return Look(color, MARKERS[shifted % len(MARKERS)], DASHES[cycle % len(DASHES)], cycle % 2 == 0)


def _named(entries: Mapping[str, str], label: str) -> str | None:
    classes = (name for name, known in TORCHPRUNE_NAMES.items() if known == label)
    return next((entries[key] for key in (label, *classes) if key in entries), None)


def _valid_color(color: str | None) -> str | None:
    if color is None:
        return None
    from matplotlib.colors import is_color_like

    return color if is_color_like(color) else None
