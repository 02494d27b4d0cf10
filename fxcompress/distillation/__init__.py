"""A smaller model trained against the one that it was made from."""

from fxcompress.distillation.distilled import Distilled
from fxcompress.distillation.float8 import Float8
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.run import correct_teacher, distill
from fxcompress.distillation.training import Training

__all__ = ["Distilled", "Float8", "Objective", "Training", "correct_teacher", "distill"]
