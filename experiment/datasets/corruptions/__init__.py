"""The 19 corruptions of Hendrycks and Dietterich, in five severities, for uint8 images of any size. Torch-free here.

Source: Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261
"""

from experiment.datasets.corruptions.constants import LEVELS

CORRUPTIONS = tuple(LEVELS)
SEVERITIES = (1, 2, 3, 4, 5)
VERSION = 1  # enters the keys of results: raise it when the same image is corrupted differently
