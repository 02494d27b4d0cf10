"""Tiny students, teachers and rows, and checkpoints of them."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests import models
from tests.cli.conftest import copied, run, saved

__all__ = ["copied", "run", "saved"]  # fixtures


@pytest.fixture
def rows() -> Tensor:
    return models.ids(8, 12)


@pytest.fixture
def held_out() -> Tensor:
    return models.ids(4, 12, seed=5)
