"""Every dim of every tensor is a term over axes, and an op is a set of equations between such terms.

An ``Axis`` is an index range: *free*, or defined as a *product* of axes (it was viewed) or as a *sum* of dims (it was
split or concatenated). A ``Dim`` is a product of axes, major to minor; ``()`` is the dim of size 1.

    in_proj.weight[0]  =  z:(g r p) + x:(g r p) + B:(g n) + C:(g n) + dt:(g r)

``Equations`` solves ties between dims by refining axes until their factors align, as type inference unifies types.
The axes that stay free are the dimensions that can be cut independently. What cannot be aligned is pinned with a
sentence: pinned is always safe, it only leaves less to prune.

Sizes are ints, or sympy expressions for dims that are known at run time only (batch, sequence).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import sympy

Size: TypeAlias = "int | sympy.Expr"
Dim: TypeAlias = "tuple[Axis, ...]"
Dims: TypeAlias = "tuple[Dim, ...]"


@dataclass(eq=False)
class Axis:
    """One index range. Compared by identity; ``link`` points to the axis that it was found to equal."""

    size: Size
    kind: Literal["free", "product", "sum"] = "free"
    parts: tuple[Any, ...] = ()  # axes of a product, dims of a sum
    link: Axis | None = None

    def __repr__(self) -> str:
        axis = resolve(self)
        if axis.kind == "product":
            return "(" + " ".join(map(repr, axis.parts)) + ")"
        if axis.kind == "sum":
            return "(" + " + ".join(" ".join(map(repr, part)) or "1" for part in axis.parts) + ")"
        return f"<{axis.size}>"


def resolve(axis: Axis) -> Axis:
    """The axis that stands for all that were found equal to this one."""
    root = axis
    while root.link is not None:
        root = root.link
    while axis.link is not None:  # path compression keeps chains of equal axes short
        axis.link, axis = root, axis.link
    return root


def factors(dim: Iterable[Axis]) -> Dim:
    """The dim as a flat product of free and sum axes; axes of size 1 drop out."""
    out: list[Axis] = []
    for axis in map(resolve, dim):
        if axis.kind == "product":
            out += factors(axis.parts)
        elif axis.size != 1:
            out.append(axis)
    return tuple(out)


def leaves(dim: Iterable[Axis]) -> Iterator[Axis]:
    """The free axes of a dim, major to minor, through sums; an axis that occurs twice is given twice."""
    for axis in factors(dim):
        if axis.kind == "sum":
            for part in axis.parts:
                yield from leaves(part)
        else:
            yield axis


def size(dim: Iterable[Axis]) -> Size:
    return math.prod((resolve(axis).size for axis in dim), start=1)


def concat(parts: Sequence[Dim]) -> Dim:
    """The dim whose index range is that of the parts, one after the other."""
    if len(parts) == 1:
        return tuple(parts[0])
    return (Axis(sum(size(part) for part in parts), "sum", tuple(tuple(part) for part in parts)),)


def divide(whole: Size, part: Size) -> Size | None:
    """whole / part where it is a whole number for every value of the symbols, else None."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    quotient = sympy.cancel(sympy.sympify(whole) / part)
    if quotient.is_Integer:
        return int(quotient)
    return quotient if quotient.is_integer else None


def occurs(axis: Axis, inside: Axis) -> bool:
    """Is ``axis`` a proper part of ``inside``? Then axis = inside has no finite solution."""
    dims = inside.parts if inside.kind == "sum" else (inside.parts,)
    return any(part is axis or occurs(axis, part) for dim in dims for part in factors(dim))


def _offsets(parts: Sequence[Dim]) -> list[Size]:
    """Where the second, third, ... part of a sum begins."""
    out: list[Size] = [0]
    for part in parts[:-1]:
        out.append(out[-1] + size(part))
    return out[1:]


@dataclass
class Equations:
    """Ties between dims, solved as they come. Pins are kept as said and read off the solved axes at the end.

    A *border* is what the program's inputs and outputs have: it can be cut, but only together with what is outside.
    """

    pins: list[tuple[Dim, str]] = field(default_factory=list)
    borders: list[tuple[Dim, str]] = field(default_factory=list)
    unequal: list[Dim] = field(default_factory=list)  # of ties that failed: an index is another one on the other side

    def pin(self, dim: Iterable[Axis], why: str) -> None:
        self.pins.append((tuple(dim), why))

    def border(self, dim: Iterable[Axis], why: str) -> None:
        self.borders.append((tuple(dim), why))

    def pinned(self) -> dict[Axis, list[str]]:
        """Every pinned free axis with the reasons, first said first."""
        return _by_axis(self.pins)

    def bordering(self) -> dict[Axis, list[str]]:
        return _by_axis(self.borders)

    def tie(self, x: Iterable[Axis], y: Iterable[Axis], why: str) -> None:
        """Equate two dims of the same size, refining their axes; pin both where their factors do not align."""
        xs, ys = list(x), list(y)
        while True:
            xs, ys = _expose(xs), _expose(ys)
            if not xs or not ys:
                break
            a, b = xs[0], ys[0]
            if a is b or a.size == b.size:
                xs, ys = xs[1:], ys[1:]
                if a is not b:
                    self._merge(a, b, why)
                continue
            if not (isinstance(a.size, int) and isinstance(b.size, int)):
                break
            if a.size < b.size:
                xs, ys, a, b = ys, xs, b, a
            if a.kind == "free" and a.size % b.size == 0:
                _define_product(a, b.size)
            elif a.kind == "sum" and (run := _run_of_size(ys, a.size)) is not None:
                xs, ys = xs[1:], ys[len(run) :]
                self._spread(a, run, why)
            else:
                break
        for dim in (xs, ys):  # what is left over on either side did not align
            if dim:
                self._refuse(dim, f"{why}: {_say(xs)} and {_say(ys)} do not align")

    def cut(self, dim: Iterable[Axis], offsets: Sequence[Size], why: str) -> list[Dim]:
        """Refine a dim into a sum at the given offsets and return its parts, pinned where the cut does not align."""
        parts = self._cut(tuple(dim), {o for o in offsets if o != 0 and o != size(dim)})
        if parts is not None:
            return parts
        self.pin(dim, f"{why}: the cut at {list(offsets)} goes across {_say(dim)}")
        bounds = [0, *offsets, size(dim)]
        fresh: list[Dim] = [(Axis(end - start),) for start, end in pairwise(bounds)]
        for part in fresh:
            self.pin(part, f"{why}: part of a dim that was cut across its factors")
        return fresh

    def _refuse(self, dim: Iterable[Axis], why: str) -> None:
        self.pin(dim, why)
        self.unequal.append(tuple(dim))

    def _merge(self, a: Axis, b: Axis, why: str) -> None:
        """Make two different axes of one size equal."""
        if occurs(a, b) or occurs(b, a):
            self._refuse((a, b), f"{why}: the axis would be a part of itself")
        elif a.kind == "free":
            a.link = b
        elif b.kind == "free":
            b.link = a
        else:
            self._spread(a, (b,), why)

    def _spread(self, total: Axis, dim: Dim, why: str) -> None:
        """Equate a sum with a dim of its size, part by part."""
        bounds = {*_offsets(total.parts), *_offsets(dim[0].parts if _is_sum(dim) else [dim])}
        left, right = self._cut((total,), bounds), self._cut(dim, bounds)
        if left is None or right is None:
            self._refuse((total, *dim), f"{why}: {_say((total,))} and {_say(dim)} do not align")
            return
        for x, y in zip(left, right, strict=True):
            self.tie(x, y, why)

    def _cut(self, dim: Dim, where: Collection[Size]) -> list[Dim] | None:
        if not where:
            return [dim]
        if not all(isinstance(offset, int) for offset in where):
            return None
        offsets = sorted(where)
        outer, *inner = factors(dim)
        if inner:  # only the outermost axis of a product can be cut, at multiples of the rest
            steps = [divide(offset, size(inner)) for offset in offsets]
            parts = None if None in steps else self._cut((outer,), steps)
            return parts and [(*part, *inner) for part in parts]
        if outer.kind == "free":
            if not isinstance(outer.size, int):
                return None
            bounds = [0, *offsets, outer.size]
            outer.kind = "sum"
            outer.parts = tuple((Axis(end - start),) for start, end in pairwise(bounds))
            return list(outer.parts)
        return self._cut_sum(outer, offsets)

    def _cut_sum(self, total: Axis, offsets: Sequence[Size]) -> list[Dim] | None:
        refined: list[Dim] = []
        start: Size = 0
        for part in total.parts:
            end = start + size(part)
            pieces = self._cut(part, [o - start for o in offsets if start < o < end])
            if pieces is None:
                return None
            refined, start = refined + pieces, end
        total.parts = tuple(refined)
        out, run, position = [], [], 0
        for part in refined:
            run.append(part)
            position = position + size(part)
            if position in offsets or position == total.size:
                out.append(concat(run))
                run = []
        return out


def _by_axis(said: Iterable[tuple[Dim, str]]) -> dict[Axis, list[str]]:
    out: dict[Axis, dict[str, None]] = {}
    for dim, why in said:
        for axis in leaves(dim):
            out.setdefault(axis, {})[why] = None
    return {axis: list(reasons) for axis, reasons in out.items()}


def _expose(axes: Sequence[Axis]) -> list[Axis]:
    """Resolve the head of a list of axes: an earlier step may have linked or refined it."""
    rest = list(axes)
    while rest:
        head = factors(rest[:1])
        if head:
            return [*head, *rest[1:]]
        rest = rest[1:]
    return rest


def _define_product(axis: Axis, outer: int) -> None:
    axis.kind, axis.parts = "product", (Axis(outer), Axis(axis.size // outer))


def _run_of_size(axes: Sequence[Axis], wanted: Size) -> Dim | None:
    """The leading axes whose product is ``wanted``."""
    for end in range(1, len(axes) + 1):
        if size(axes[:end]) == wanted:
            return factors(axes[:end])
    return None


def _is_sum(dim: Dim) -> bool:
    return len(dim) == 1 and dim[0].kind == "sum"


def _say(dim: Iterable[Axis]) -> str:
    return " x ".join(str(axis.size) for axis in factors(dim)) or "1"
