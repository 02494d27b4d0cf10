"""Budgets as text: ``FIGURE<=NUMBER UNIT at NAME=VALUE, NAME=VALUE``. It is parsed, never evaluated."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.memory import read_bits

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": 1}
_PER_SECOND = {"tokens/s": 1}
_WRITTEN: dict[str, Mapping[str, Any]] = {  # by figure, the smallest unit first
    "parameters": _COUNTS,
    "non_embedding": _COUNTS,
    "weights": _BYTES,
    "bytes": _BYTES,
    "latency": _SECONDS,
    "throughput": _PER_SECOND,
}
UNITS = _WRITTEN | {"weights": _BYTES | _BINARY, "bytes": _BYTES | _BINARY, "throughput": {"": 1} | _PER_SECOND}

TIMES = "x"  # what the original has

_NUMBER = r"\d{1,18}(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?"
_BUDGET = re.compile(rf"\s*(\w+)\s*(<=|>=)\s*({_NUMBER})\s*([A-Za-z/]*)(?:\s*\bat\b(.*))?\s*")
_CONDITION = re.compile(r"\s*(\w+)\s*=\s*([\w.]+)\s*")


def split(text: Any) -> tuple[str, bool, str, str, str]:
    """Figure, is it a lower bound, number, unit, conditions. Raises CompressError for what is no budget."""
    match = _BUDGET.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise CompressError(f"{quoted(text)} is no budget: write 'parameters<=4.5B' or 'bytes<=24GB at context=4096'")
    figure, relation, number, unit, conditions = match.groups()
    return figure, relation == ">=", number, unit, conditions or ""


def read_limit(figure: str, number: str, unit: str) -> float:
    """In parameters, bytes, seconds or tokens per second. Raises CompressError for another figure's unit."""
    units = UNITS[figure]
    if unit not in units:
        wanted = ", ".join(filter(None, units))
        raise CompressError(
            f"{figure}: {quoted(number + unit)} has {'no' if not unit else 'an unknown'} unit; {wanted}"
        )
    return float(Decimal(number) * units[unit])


def read_conditions(figure: str, text: str, known: Collection[str], bits: Collection[str]) -> dict[str, Any]:
    """``batch=8, context=32768``. Raises CompressError for names that the figure does not depend on."""
    out: dict[str, Any] = {}
    for part in text.split(",") if text.strip() else []:
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise CompressError(f"{figure}: {quoted(part.strip())} is no condition: write 'batch=8, context=4096'")
        name, value = match.groups()
        if name not in known:
            there = f"it depends on {', '.join(known)}" if known else "it depends on none"
            raise CompressError(f"{figure} has no condition {quoted(name)}; {there}")
        if name in out:
            raise CompressError(f"{figure}: {name} is given twice")
        out[name] = read_bits(value) if name in bits else _whole(f"{figure}: {name}", value)
    return out


def write(figure: str, at_least: bool, limit: float, conditions: Mapping[str, Any], relative: bool = False) -> str:
    """The inverse of reading, number for number."""
    exact = Decimal(repr(float(limit)))
    unit, factor = (TIMES, 1) if relative else _unit(figure, exact)
    number = f"{(exact / factor).normalize():f}"
    load = ", ".join(f"{name}={str(value).removesuffix('.0')}" for name, value in conditions.items())
    space = " " if "/" in unit else ""
    return f"{figure}{'>=' if at_least else '<='}{number}{space}{unit}" + (f" at {load}" if load else "")


def said(figure: str, value: float) -> str:
    """A value for readers: three digits and a unit."""
    unit, factor = _unit(figure, value)
    number = value / float(factor)
    space = "" if _WRITTEN[figure] is _COUNTS else " "
    return f"{number:.3g}{space}{unit}" if number < 1000 else f"{number:,.0f}{space}{unit}"


def _unit(figure: str, value: Any) -> tuple[str, Any]:
    """The largest unit that a value has one of, the smallest where it has none."""
    units = list(_WRITTEN[figure].items())
    return next((unit for unit in reversed(units) if value >= unit[1]), units[0])


def _whole(what: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,13}", text):
        raise CompressError(f"{what}={quoted(text)} is no whole number")
    return int(text)
