"""The transforms that a parameter file may name, torch-free: torchvision's for images, with plain arguments."""

TRANSFORMS: tuple[str, ...] = (
    "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ConvertImageDtype", "ElasticTransform", "GaussianBlur",
    "GaussianNoise", "Grayscale", "Normalize", "PILToTensor", "Pad", "RGB", "RandAugment", "RandomAdjustSharpness",
    "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPhotometricDistort",
    "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize",
    "RandomVerticalFlip", "Resize", "ScaleJitter", "ToTensor", "TrivialAugmentWide",
)  # fmt: skip
