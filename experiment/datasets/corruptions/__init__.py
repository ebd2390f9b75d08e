"""The 19 corruptions of Hendrycks and Dietterich, in five severities, for uint8 images of any size. Torch-free here.

Source: Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261
"""

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
VERSION = 1  # enters the keys of results: raise it when the same image is corrupted differently
