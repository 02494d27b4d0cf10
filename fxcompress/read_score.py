"""Criteria as text, ``activation(sequence=mean, at=output)``: parsed, never evaluated."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_type_hints

from fxcompress.bounded import quoted
from fxcompress.criteria import Activation, Fluctuation, Magnitude, Random, Routing, Taylor
from fxcompress.errors import CompressError
from fxcompress.score import Criterion, Own, Score

CRITERIA: dict[str, type[Criterion]] = {
    kind.name: kind for kind in (Magnitude, Activation, Fluctuation, Taylor, Routing, Random)
}
_MOST = 1000  # characters


def criterion(score: Score) -> Criterion:
    """What a pass's ``score=`` means. Raises CompressError for names, options and values that are not there."""
    if isinstance(score, Criterion):
        return _checked(type(score), {f.name: getattr(score, f.name) for f in fields(score)})
    if isinstance(score, str):
        return _read(score)
    if callable(score) or isinstance(score, Mapping):
        return Own(given=score)
    raise CompressError(f"score={quoted(score)} is no score; there are {', '.join(CRITERIA)}, or pass a callable")


@cache
def _read(text: str) -> Criterion:
    name, options = _parsed(text)
    if name not in CRITERIA:
        raise CompressError(f"score={quoted(text)} is unknown; there are {', '.join(CRITERIA)}, or pass a callable")
    return _checked(CRITERIA[name], options)


def _checked(kind: type[Criterion], options: Mapping[str, Any]) -> Criterion:
    known = {f.name: get_args(get_type_hints(kind)[f.name]) for f in fields(kind)}
    for name, value in options.items() if kind is not Own else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise CompressError(
                f"score {kind.name} has no option {quoted(name)}{hint}; it has {', '.join(known) or 'none'}"
            )
        if known[name] and value not in known[name]:
            raise CompressError(
                f"score {kind.name}: {name}={quoted(value)} is unknown; there are {', '.join(known[name])}"
            )
    return kind(**options)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """``name`` or ``name(option=value, ...)`` with values that are words."""
    wrong = CompressError(f"score={quoted(text)} is not a name with options, like activation(sequence=mean, batch=l2)")
    try:
        call = ast.parse(text.strip(), mode="eval").body if len(text) <= _MOST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise wrong from error
    if isinstance(call, ast.Name):
        return call.id, {}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise wrong
    options = {k.arg: _word(k.value) for k in call.keywords if k.arg is not None}
    if len(options) != len(call.keywords) or None in options.values():
        raise wrong
    return call.func.id, options


def _word(value: ast.expr) -> Any:
    """A word, quoted or not, or a number; None for anything else."""
    if isinstance(value, ast.Name):
        return value.id
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str | int | float) else None
