"""Pruning one weight by name: ``METHODS[name](weight, gram, pattern, **options)`` gives a ``Pruned``.

    magnitude   |w|, no compensation: the baseline
    wanda       |w| √H_jj, no compensation              arXiv 2306.11695
    sparsegpt   single scores and compensation, left to right in blocks     arXiv 2301.00774
    mrp         many weights removed at once, compensated over whole rows   Findings of EMNLP 2024
    alps        support by ADMM, conjugate gradients on it                  arXiv 2406.07831

Those that use an inverse take ``damping``, the fraction of H's mean diagonal that is added to it. Weights are of any
float dtype and device; what is computed is float32 or wider, and removed weights come back exactly 0.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.weights import blocked, scores
from fxcompress.weights.alps import support
from fxcompress.weights.compensation import MEMORY, conjugate_gradient, none
from fxcompress.weights.compensation import exact as whole_rows
from fxcompress.weights.gram import Gram, relative_loss
from fxcompress.weights.pattern import NM, Pattern

Shares = Literal["even", "dense"]
Solver = Literal["cholesky", "cg"]


@dataclass(frozen=True)
class Pruned:
    """A pruned weight (m, n) in the dtype that was given, with its mask, True where a weight stays.

    loss: tr (W − W') H (W − W')ᵀ / tr W H Wᵀ without damping. damping: as used, which is more than asked where H was
    singular; None where no inverse was needed.
    """

    weight: Tensor
    mask: Tensor
    loss: float
    damping: float | None

    @property
    def sparsity(self) -> float:
        return 1 - float(self.mask.double().mean())


Method = Callable[..., Pruned]
METHODS: dict[str, Method] = {}


def _method(function: Callable[..., tuple[Tensor, Tensor, float | None]]) -> Method:
    """Enter a function of (W in float32 or wider, gram, pattern, zero mask, options) in the table, by its name."""
    name = function.__name__
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    @torch.no_grad()
    def prune(weight: Tensor, gram: Gram, pattern: Pattern, **options: Any) -> Pruned:
        if unknown := sorted(set(options) - set(known)):
            raise CompressError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        _check(weight, gram, pattern)
        wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        gram = gram.to(weight.device)
        found, mask, damping = function(wide, gram, pattern, wide == 0, **options)
        found = none(found.to(weight.dtype), mask)
        return Pruned(found, mask, relative_loss(wide, found, gram), damping)

    METHODS[name] = prune
    return prune


@_method
def magnitude(weight: Tensor, gram: Gram, pattern: Pattern, zero: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """The lowest |w| go; the others stay as they are."""
    return weight, pattern.mask(scores.magnitude(weight), zero), None


@_method
def wanda(weight: Tensor, gram: Gram, pattern: Pattern, zero: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """The lowest |w| √H_jj go; the others stay as they are."""
    return weight, pattern.mask(scores.wanda(weight, gram.matrix), zero), None


@_method
def sparsegpt(
    weight: Tensor, gram: Gram, pattern: Pattern, zero: Tensor, *, block: int = 128, damping: float = 0.01
) -> tuple[Tensor, Tensor, float | None]:
    """Blocks of columns from left to right: single scores, each removed weight made up for by those right of it."""
    _check_number("block", block, 1, "columns")
    damped = gram.damped(damping)
    return *blocked.sweep(weight, damped, pattern, zero, "S", "S", block), damped.damping


@_method
def mrp(
    weight: Tensor,
    gram: Gram,
    pattern: Pattern,
    zero: Tensor,
    *,
    mask: blocked.Rule | None = None,
    compensation: blocked.Rule = "M",
    exact: bool | None = None,
    sweep: bool = True,
    shares: Shares | None = None,
    block: int | None = None,
    solver: Solver | None = None,
    damping: float = 0.01,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor, float | None]:
    """Masks by rule S or M, compensation by rule S or M; by default the closed form over whole rows.

    mask: "S", the single score, or "M", the cheapest set of every group, for N:M patterns only and their default.
    compensation: "S", column by column as SparseGPT, or "M", of all removed weights at once. exact: with M, over the
    whole row from the dense weights (default), otherwise within the block and to the right of it. sweep: choose masks
    left to right in blocks of ``block`` columns (32), each compensated for the ones before; otherwise all at once.
    shares: how much every block of an unstructured sweep loses: as the scores of the dense weights have it ("dense",
    the default), or the same part ("even"). solver: of whole rows, "cholesky" (default), or "cg", which comes as near
    as the dtype allows with products of whole matrices only. memory: bytes to work in.
    """
    rule = mask or ("M" if isinstance(pattern, NM) else "S")
    _check_rules(rule, compensation, exact, pattern)
    _check_solver(solver, compensation, exact)
    _check_sweep(sweep, compensation, exact, shares, block, pattern)
    _check_number("memory", memory, 1, "bytes")
    damped = gram.damped(damping)
    if sweep:
        plan = None if shares == "even" else blocked.at_once(weight, damped, pattern, zero)
        out, kept = blocked.sweep(weight, damped, pattern, zero, rule, compensation, block or 32, plan, memory)
    else:
        out, kept = weight, blocked.at_once(weight, damped, pattern, zero, rule, memory)
    if compensation == "M" and exact is not False:
        cg = solver == "cg"
        out = conjugate_gradient(weight, kept, damped) if cg else whole_rows(weight, kept, damped, memory)
    return out, kept, damped.damping


@_method
def alps(
    weight: Tensor,
    gram: Gram,
    pattern: Pattern,
    zero: Tensor,
    *,
    finish: Literal["pcg", "exact"] = "pcg",
    steps: int = 10,
    damping: float = 0.01,
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor, float | None]:
    """ADMM for the mask, then ``steps`` conjugate gradients, or with finish="exact" the closed form over whole rows.

    Its authors compare weights of the whole matrix: Unstructured(…, per="matrix").
    """
    if finish not in ("pcg", "exact"):
        raise CompressError(f"finish={finish!r} is unknown: the support found is finished by 'pcg' or 'exact'")
    _check_number("steps", steps, 0, "steps")
    _check_number("memory", memory, 1, "bytes")
    damped = gram.damped(damping)
    kept = support(weight, damped, pattern, zero)
    if finish == "exact":
        return whole_rows(weight, kept, damped, memory), kept, damped.damping
    return conjugate_gradient(weight, kept, damped, iterations=steps), kept, damped.damping


def _check_rules(mask: str, compensation: str, exact: bool | None, pattern: Pattern) -> None:
    for option, rule in (("mask", mask), ("compensation", compensation)):
        if rule not in ("S", "M"):
            raise CompressError(f"{option}={rule!r} is unknown: rules are 'S', one weight at a time, and 'M', many")
    if mask == "M" and not isinstance(pattern, NM):
        raise CompressError(f"mask='M' tries the sets of an N:M pattern, and {pattern} is none; take mask='S'")
    if compensation == "S" and exact:
        raise CompressError("exact=True is a compensation of many weights at once; take compensation='M'")


def _check_solver(solver: str | None, compensation: str, exact: bool | None) -> None:
    if solver not in (None, *get_args(Solver)):
        raise CompressError(f"solver={solver!r} is unknown: whole rows are solved for by 'cholesky' or 'cg'")
    if solver is not None and (compensation == "S" or exact is False):
        raise CompressError("solver= is of whole rows: it needs compensation='M' and exact not False")


def _check_sweep(
    sweep: bool, compensation: str, exact: bool | None, shares: str | None, block: int | None, pattern: Pattern
) -> None:
    if shares not in (None, *get_args(Shares)):
        raise CompressError(f"shares={shares!r} is unknown: blocks lose what 'dense' scores say, or an 'even' part")
    if shares is not None and isinstance(pattern, NM):
        raise CompressError(f"shares={shares!r} has no meaning for {pattern}, which takes the same of every group")
    _check_number("block", block, 1, "columns")
    if not sweep and (compensation == "S" or exact is False):
        raise CompressError("sweep=False chooses all masks at once: it needs compensation='M', exact over whole rows")
    if not sweep and (shares or block):
        raise CompressError("sweep=False has no blocks: leave out block= and shares=")


def _check_number(option: str, number: int | None, least: int, of: str) -> None:
    if number is not None and number < least:
        raise CompressError(f"{option}={number} is no number of {of}")


def _check(weight: Tensor, gram: Gram, pattern: Pattern) -> None:
    if weight.dim() != 2 or not weight.is_floating_point():
        raise CompressError(f"a weight of shape {tuple(weight.shape)} in {weight.dtype}: a float matrix is needed")
    if weight.shape[1] != gram.size:
        raise CompressError(f"the weight has {weight.shape[1]} columns, and its inputs' Gram matrix is of {gram.size}")
    if wrong := int((~weight.isfinite()).sum()):
        raise CompressError(f"{wrong} values of the weight {tuple(weight.shape)} are NaN or infinite")
    pattern.check(weight.shape[1])
