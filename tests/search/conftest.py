"""A small search that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fxcompress
from fxcompress.searching.found import Found
from tests import models
from tests.search.tiny import BATCHES, SPACE


@pytest.fixture(scope="session")
def small_search() -> Callable[..., Found]:
    """A search on a tiny Transformer that is captured already, with other arguments where they are given."""

    def search(budget: Any = "parameters<=40K", **others: Any) -> Found:
        model = others.pop("model", models.captured("llama", torch.float32))
        arguments = {"space": SPACE, "calibration": BATCHES, "trials": 4, "best": 2} | others
        return fxcompress.search(model, budget=budget, **arguments)

    return search


@pytest.fixture(scope="session")
def found(small_search: Callable[..., Found]) -> Found:
    return small_search()
