"""Training that takes part of a second, and a pair to train."""

from __future__ import annotations

from typing import Any

import fxcompress
from fxcompress import Training
from fxcompress.distillation import Distilled
from tests import models

QUICK: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 3e-3, "log_every": 1, "device": "cpu"}


def quick(**options: Any) -> Training:
    return Training(**QUICK | options)


def distilled(student: Any, teacher: Any, rows: Any = None, *, training: Any = None, **options: Any) -> Distilled:
    """A student after a few steps."""
    data = models.ids(8, 12) if rows is None else rows
    return fxcompress.distill(student, teacher, data, training=training or quick(), **options)
