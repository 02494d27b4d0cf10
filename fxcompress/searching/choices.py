"""From the axes that were asked for to the space on a model: every size is one that the model can be cut to.

    {"width": (3072, 4096, 256), "ffn": [8192, 12288], "ssm_heads": None}          width=3072:4096:256 ffn=8192,12288

A tuple is (low, high, step), a list are the sizes themselves. An axis without sizes has those from half of the
original's on: multiples of a power of two near a sixteenth of it, the same in every row of heads. These are about the
steps and ranges of Minitron-SSM (arXiv 2504.11409, section 3).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxcompress.allocate import fewest_kept
from fxcompress.amount import Amount
from fxcompress.axes import AxisMap
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.searching.space import AXES, LAYERS, NAMES, Choices, Space

_PART = 16  # default steps are near this part of the original's size
_MOST_SIZES = 1 << 12  # of one axis


def open_space(program: Program, asked: Any, layer_order: Sequence[int]) -> Space:
    """The space on a model. ``asked``: a mapping as above, names of axes, or None for every axis that the model has.

    layer_order: positions of layers, the first to go first; empty where the model has no list of residual blocks.
    Raises CompressError for axes and sizes that are not there, or that the model cannot be cut to.
    """
    if asked is None:
        return Space(tuple(_every_axis(program, layer_order)), tuple(layer_order))
    wanted = as_mapping(asked, NAMES)
    order = [name for name in NAMES if name in wanted]
    choices = (_with_sizes(program, _whole(program, name, layer_order), wanted[name]) for name in order)
    return Space(tuple(choices), tuple(layer_order))


def read_axes(texts: Iterable[str]) -> dict[str, Any]:
    """``ffn=8192:21504:512``, ``layers=44,48`` and ``width`` as ``open_space`` takes them. Raises CompressError."""
    out: dict[str, Any] = {}
    for text in texts:
        name, given, sizes = (part.strip() for part in text.partition("="))
        if name in out:
            raise CompressError(f"the axis {quoted(name)} is given twice")
        out[name] = _read_sizes(text, sizes) if given else None
    return out


def _read_sizes(text: str, sizes: str) -> list[int] | tuple[int, ...]:
    if re.fullmatch(r"\d{1,9}(:\d{1,9}){2}", sizes):
        return tuple(map(int, sizes.split(":")))
    if re.fullmatch(r"\d{1,9}(,\s*\d{1,9})*", sizes):
        return list(map(int, sizes.split(",")))
    raise CompressError(f"{quoted(text)} is no axis: write 'ffn=8192:21504:512', 'layers=44,48,52' or 'width'")


def as_mapping(asked: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """A space as sizes by axis. Raises CompressError for what is none, and for axes that are not among ``names``."""
    if isinstance(asked, str | Choices) or not isinstance(asked, Iterable):
        raise CompressError(f"space={quoted(asked)} is none: write {{'ffn': (8192, 21504, 512), '{names[0]}': None}}")
    wanted = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked)
    if not wanted:
        raise CompressError(f"the space has no axis: name some of {', '.join(names)}")
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise CompressError(f"there is no axis {quoted(name)}{hint}; there are {', '.join(names)}")
    return wanted


def _every_axis(program: Program, layer_order: Sequence[int]) -> Iterator[Choices]:
    for name in NAMES:
        try:
            axis = _whole(program, name, layer_order)
        except CompressError:  # the model has none
            continue
        yield _with_sizes(program, axis, None)


def _whole(program: Program, name: str, layer_order: Sequence[int]) -> Choices:
    """The axis with the original's size alone. Raises CompressError for none, and for several sizes in one model."""
    if name == LAYERS:
        if not layer_order:
            raise CompressError("layers: the model has no list of residual blocks")
        return Choices(name, len(layer_order), (len(layer_order),))
    groups = AXES[name](size=1).selected(program)
    other = next((group for group in groups if group.sizes != groups[0].sizes), None)
    if other is not None:
        raise CompressError(
            f"{name}: {groups[0].key} has {groups[0].total} and {other.key} has {other.total}; an axis of a search has"
            " one size in all layers"
        )
    return Choices.of(name, groups)


def _with_sizes(program: Program, axis: Choices, asked: Any) -> Choices:
    """The axis with the sizes that were asked for. Raises CompressError where one of them cannot be."""
    fewest = max((fewest_kept(program.get(AxisMap), group) for group in axis.groups), default=1) * axis.step
    if asked is None:
        return replace(axis, sizes=tuple(size for size in _default(axis) if size >= fewest))
    sizes = sorted(set(listed(axis.name, asked)))
    for size in sizes:
        if not fewest <= size <= axis.original:
            raise CompressError(f"{axis.name}: {size} is not between {fewest} and the {axis.original} of the model")
        if axis.groups:
            Amount(size=axis.total(size)).kept(axis.groups[0].sizes, axis.groups[0].key)
    return replace(axis, sizes=tuple(sizes))


def listed(name: str, asked: Any, least: int = 1) -> Sequence[int]:
    """The sizes that were asked for, in a list or by (low, high, step). Raises CompressError for anything else."""
    if isinstance(asked, str | Mapping) or not isinstance(asked, Iterable):
        raise CompressError(f"{name}={quoted(asked)}: sizes are a list of them, or a tuple (low, high, step)")
    given = list(asked)
    if not given:
        raise CompressError(f"{name} has no size to choose from: write a list of sizes, or None for the default")
    if not all(type(size) is int and size >= least for size in given):
        raise CompressError(f"{name}={quoted(asked)}: sizes are {'positive ' if least else ''}whole numbers")
    if isinstance(asked, tuple):
        if len(given) != 3 or given[0] > given[1] or not given[2]:
            raise CompressError(
                f"{name}={quoted(asked)}: a tuple is (low, high, step); a list are the sizes themselves"
            )
        low, high, step = given
        given = list(range(low, high + 1, step)[: _MOST_SIZES + 1])
    if len(given) > _MOST_SIZES:
        raise CompressError(f"{name} has more than {_MOST_SIZES:,} sizes to choose from: take a larger step")
    return given


def _default(axis: Choices) -> list[int]:
    whole = axis.count(axis.original)
    step = 1 << max(whole // _PART, 1).bit_length() - 1  # a power of two: what kernels and shards divide by
    counts = [n for n in range(step, whole, step) if 2 * n >= whole]
    return [n * axis.step for n in [*counts, whole]]
