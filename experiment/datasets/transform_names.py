"""The transforms that a parameter file may name, torch-free: torchvision's for images, with plain arguments.

A target that is a map of classes is transformed together with its image: what moves pixels moves both, with the same
random numbers, and pixels of the map from outside the image get class 255, which counts nowhere.
"""

from collections.abc import Mapping

SEGMENTATION: Mapping[str, str] = {
    "SegCenterCrop": "CenterCrop.",
    "SegNormalize": "Normalize.",
    "SegRandomCrop": "RandomCrop of `size`, after padding at the right and at the bottom of smaller images.",
    "SegRandomHorizontalFlip": "RandomHorizontalFlip with probability `flip_prob`.",
    "SegRandomResize": "Resize of the shorter side to a random length from `min_size` to `max_size`, both included.",
    "SegToTensor": "ToTensor.",
}
"""torchprune's names for segmentation, and what they mean here."""

TORCHVISION: tuple[str, ...] = (
    "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ConvertImageDtype", "ElasticTransform", "GaussianBlur",
    "GaussianNoise", "Grayscale", "Normalize", "PILToTensor", "Pad", "RGB", "RandAugment", "RandomAdjustSharpness",
    "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPhotometricDistort",
    "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize",
    "RandomVerticalFlip", "Resize", "ScaleJitter", "ToTensor", "TrivialAugmentWide",
)  # fmt: skip

TRANSFORMS: tuple[str, ...] = tuple(sorted((*TORCHVISION, *SEGMENTATION)))
