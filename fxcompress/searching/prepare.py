"""What a choice by layers is given, checked before any work: a model with values, budgets of sizes, token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxcompress.batches import Batch, batches_of, require_fitting
from fxcompress.compressed import open_model
from fxcompress.errors import CompressError
from fxcompress.pipeline import check_values
from fxcompress.program import Program
from fxcompress.searching.budget import Budget, budgets_of


def open_with_values(model: Any, example_inputs: Any) -> Program:
    """What ``fxcompress.apply`` takes as a model, as a program. Raises CompressError where a value is no number."""
    program = open_model(model, example_inputs).program
    if program.is_meta:
        raise CompressError("the model is on meta: without values there is nothing to score")
    check_values(program)
    return program


def counted(budgets: Any) -> tuple[Budget, ...]:
    """Budgets that follow from sizes. Raises CompressError for others."""
    found = budgets_of(budgets)
    for budget in found:
        if budget.is_measured:
            raise CompressError(f"{budget} is measured: a choice by layers keeps budgets of parameters, weights, bytes")
    return found


def fitting(program: Program, batches: Any) -> list[Batch]:
    """Batches of token ids. Raises CompressError for what the model cannot read."""
    found: Sequence[Batch] = batches_of(batches)
    if program.origin.config is not None:
        require_fitting(found, program.origin.config)
    return list(found)
