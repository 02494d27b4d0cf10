"""What a choice by layers is given, checked before any work: budgets of sizes, token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxcompress.batches import Batch, batches_of, require_fitting
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.budget import Budget


def require_counted(budgets: Sequence[Budget]) -> None:
    """Raise CompressError for budgets that do not follow from sizes."""
    for budget in budgets:
        if budget.is_measured:
            raise CompressError(f"{budget} is measured: a choice by layers keeps budgets of parameters, weights, bytes")


def fitting(program: Program, batches: Any) -> list[Batch]:
    """Batches of token ids. Raises CompressError for what the model cannot read."""
    found: Sequence[Batch] = batches_of(batches)
    if program.origin.config is not None:
        require_fitting(found, program.origin.config)
    return list(found)
