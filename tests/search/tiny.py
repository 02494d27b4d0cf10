"""The space and the calibration of the small searches."""

from tests import models

SPACE = {"ffn": (40, 80, 8), "width": [24, 36, 48], "layers": [2, 3]}
BATCHES = [models.ids(3, 24, seed=seed) for seed in (1, 2)]
