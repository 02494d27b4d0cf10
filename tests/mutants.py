"""Mistakes to plant in the algebra, and in the rules: each is one piece of one function, or of one rule, made wrong.

The laws of ``tests/programs`` catch a mutant when any of them fails on a random program. A mutant that they cannot
catch says why; ``tools/fuzz.py mutants`` measures how many programs each one takes.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any
from unittest.mock import patch

import torch

from fxcompress import axes, axis, einop, keep, masked, rewrite
from fxcompress.axes import AxisMap
from fxcompress.axis import Equations
from fxcompress.rule import RULES
from fxcompress.rules import movement, norm, reduce

aten, ours = torch.ops.aten, torch.ops.fxcompress


@dataclass(frozen=True)
class Mutant:
    """``within``: so many random programs catch it. ``survives``: why none can."""

    name: str
    plant: Callable[[], contextlib.AbstractContextManager]
    within: int = 100
    survives: str = ""


@contextlib.contextmanager
def mutated(function: FunctionType, old: str, new: str) -> Iterator[None]:
    """The function with a piece of its text replaced, wherever it was imported to."""
    original = function.__code__
    function.__code__ = _code(function, old, new)
    try:
        yield
    finally:
        function.__code__ = original


def _code(function: FunctionType, old: str, new: str) -> CodeType:
    text = textwrap.dedent(inspect.getsource(function))
    if old not in text:
        raise AssertionError(f"{function.__qualname__} has no {old!r} any more: write its mutant anew")
    definition = ast.parse(text.replace(old, new)).body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    module = ast.Module([definition], [])
    flags = __future__.annotations.compiler_flag
    scope = dict(function.__globals__)
    exec(compile(module, inspect.getfile(function), "exec", flags, dont_inherit=True), scope)
    return scope[function.__name__].__code__


@contextlib.contextmanager
def spelled(op: Any, old: str, new: str) -> Iterator[None]:
    """The rule of an op with a piece of its string replaced."""
    algebra: Any = RULES[op].einop
    if old not in algebra.spec:
        raise AssertionError(f"{op} has no {old!r} any more: write its mutant anew")
    wrong = dataclasses.replace(algebra, spec=algebra.spec.replace(old, new))
    with patch.dict(RULES, {op: dataclasses.replace(RULES[op], infer=wrong.infer, einop=wrong)}):
        yield


@contextlib.contextmanager
def unsized(*ops: Any) -> Iterator[None]:
    """The rules of some ops without their new size arguments."""
    with patch.dict(RULES, {op: dataclasses.replace(RULES[op], resize=None) for op in ops}):
        yield


def _text(name: str, function: Any, old: str, new: str, within: int = 100, survives: str = "") -> Mutant:
    return Mutant(name, lambda: mutated(function, old, new), within, survives)


def _spec(name: str, op: Any, old: str, new: str, within: int = 100) -> Mutant:
    return Mutant(name, lambda: spelled(op, old, new), within)


MUTANTS = (
    # the unifier
    _text("equal sizes are not made equal", Equations.tie, "self._merge(a, b, why)", "pass", 10),
    _text("factors that do not divide are split", Equations.tie, "a.size % b.size == 0", "a.size > b.size"),
    _text("what is left over is not pinned", Equations.tie, "if dim:", "if False:"),
    _text(
        "no occurs check",
        Equations._merge,
        "if occurs(a, b) or occurs(b, a):",
        "if False:",
        survives="only axes of one size are made equal, and a proper part of an axis is smaller than the axis",
    ),
    _text("two sums are linked, not matched", Equations._merge, "self._spread(a, (b,), why)", "a.link = b", 1000),
    _text("sums are matched back to front", Equations._spread, "zip(left, right,", "zip(left, right[::-1],", 10),
    _text("a cut across factors is taken", Equations._cut, "divide(offset, size(inner))", "offset // size(inner)", 10),
    _text("a cut turns the factors round", Equations._cut, "(*part, *inner)", "(*inner, *part)", 10),
    _text("a cut is one off", Equations._cut, "bounds = [0, *offsets,", "bounds = [0, *(o + 1 for o in offsets),", 10),
    _text(
        "a sum has its parts in another order",
        axis.concat,
        "(tuple(part) for part in parts)",
        "(tuple(part) for part in parts[::-1])",
    ),
    _text(
        "a product has its factors in another order",
        axis._define_product,
        "(Axis(outer), Axis(axis.size // outer))",
        "(Axis(axis.size // outer), Axis(outer))",
        survives="the factors are then tied to those that were asked for: they agree, or do not align and are pinned",
    ),
    # axes and groups
    _text(
        "an axis may meet itself",
        AxisMap.__init__,
        'equations.pin(dim, f"it meets',
        'equations.pin((), f"it meets',
        1000,
    ),
    _text("outputs are not pinned", AxisMap._visit, "in self._all_dims(used):", "in ():", 10),
    _text(
        "a weight read twice has two sets of axes", AxisMap._visit, "if node.target not in self.state:", "if True:", 10
    ),
    _text("a choice may differ where values are averaged", AxisMap._outer_axes, "mixed = {axis for", "mixed = {0 for"),
    _text("a choice may differ in any context", AxisMap._outer_axes, "in self._contexts:", "in ():", 1000),
    _text("a choice may differ beside an op", AxisMap._outer_axes, "for node in self.dims:", "for node in ():"),
    _text("the second operand of arithmetic is not tied", axes.pointwise, "in present[1:]:", "in present[2:]:", 10),
    # indices
    _text(
        "indices count by what is kept",
        keep._select,
        "flat[..., None] * axis.size",
        "flat[..., None] * index.shape[-1]",
        10,
    ),
    _text(
        "all rows of a choice are the first",
        keep._select_free,
        "index[tuple(at[a] for a in outer[axis])]",
        "index.flatten(0, -2)[:1].expand(rows, -1)",
    ),
    _text(
        "parts begin where the kept ones end",
        keep._select_sum,
        "start += size(part)",
        "start += kept_size(part, keep)",
        10,
    ),
    # rules as strings
    _text("letters are not tied", einop._bind_letter, "call.tie(bound, dim)", "pass", 10),
    _spec("query heads as (r k)", ours.attention.default, "(k r)", "(r k)", 1000),
    _spec("B and C are not tied", ours.selective_scan.default, "b n l, b n l", "b n l, b m l", 10),
    _spec("gates and values alternate", ours.experts.default, "(m f)", "(f m)", 10),
    # rules as functions
    Mutant("views keep their sizes", lambda: unsized(aten.reshape.default), 10),
    Mutant("a convolution keeps its groups", lambda: unsized(aten.conv1d.default, aten.conv1d.padding), 1000),
    _text(
        "repeats stand the other way round",
        movement.repeat_interleave,
        "(*dims[along], times)",
        "(times, *dims[along])",
    ),
    _text("concatenation ties nothing", movement.cat, "call.tie(parts[0][i], dim)", "pass", 1000),
    _text("averages are not said", norm.layer_norm, 'call.reduce("input", len(x) - 1 - i, AVERAGE)', "pass", 10),
    _text("softmax sees zeros", reduce.softmax, "NEG_INF", "0.0"),
    _text(
        "turning round is no matter of position",
        movement.reorder,
        'in call.arg("dims") or range(len(dims)):',
        "in ():",
        1000,
    ),
    # the rewrite, and its second witness
    _text(
        "the last parameter stays whole",
        rewrite.cut_tensors,
        "in axes.state.items():",
        "in list(axes.state.items())[:-1]:",
        10,
    ),
    _text("only what an op returns is looked at", rewrite._touches, "if n in axes.dims", "if False"),
    _text("a masked mean divides by all", masked.MaskedRun._average, "(total / kept)", "1.0", 1000),
)
