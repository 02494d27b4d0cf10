"""What must hold when any free group of any program is permuted or cut.

permutation   the outputs do not change
cut           the cut program's values are the elements that are there of the partial program (``partial.py``)
mask          its outputs are also those of ``MaskedRun``: the second witness
slices        every parameter is an outer product of increasing indices of the original
count         parameters have as many elements as the sizes of their axes say
runs          nothing raises: neither the analysis, nor a rewrite, nor a rewritten program
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import graph
from fxcompress.axes import AxisMap, Group
from fxcompress.errors import CompressError
from fxcompress.keep import kept_size
from fxcompress.masked import MaskedRun
from fxcompress.plan import Step
from fxcompress.rewrite import keep_by_axis
from tests.programs.builder import Trial
from tests.programs.meanings import whole
from tests.programs.partial import run_partially

LAWS = ("runs", "permutation", "cut", "mask", "slices", "count")
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Find:
    """A law that does not hold."""

    law: str
    groups: str
    said: str

    def __str__(self) -> str:
        return f"{self.law} [{self.groups}]: {self.said}"


@torch.no_grad()
def check(program: Trial, seed: int = 0) -> Iterator[Find]:
    """Every law for each free group alone, and for all of them at once."""
    rng = random.Random(seed)
    try:
        free = [group for group in program.get(AxisMap).groups if not group.pinned]
    except Exception as error:
        yield Find("runs", "the analysis", _first_line(error))
        return
    for groups in [*([g] for g in free), *([free] if len(free) > 1 else [])]:
        yield from check_groups(program, groups, rng)


@torch.no_grad()
def check_groups(program: Trial, groups: Sequence[Group], rng: random.Random) -> Iterator[Find]:
    """Every law for some groups together."""
    name = ", ".join(g.key for g in groups)
    for verify in (_permutation, _cut):
        try:
            yield from (Find(law, name, said) for law, said in verify(program, groups, rng))
        except CompressError:  # a refusal, before anything was cut: an op needs more indices than are left
            continue
        except Exception as error:
            yield Find("runs", name, f"{verify.__name__.strip('_')} raises {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def orders(groups: Sequence[Group], rng: random.Random, count: Any = lambda n: n) -> dict[str, Tensor]:
    """Random orders of the groups' indices: one row, or where it may differ one for each index of the outer axes."""
    out = {}
    for group in groups:
        ragged = len(group.sizes) > 1 and rng.random() < 0.7
        shape = group.sizes if ragged else group.sizes[-1:]
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
        out[group.key] = noise.argsort(-1)[..., : count(group.size)]
    return out


def _permutation(program: Trial, groups: Sequence[Group], rng: random.Random) -> Iterator[tuple[str, str]]:
    before = [node.meta["val"] for node in program.graph.output_node().args[0]]
    with program.rewritten(Step("permutation", orders(groups, rng))):
        after = outputs(program, run(program))
    if (error := difference(before, after)) > TOLERANCE:
        yield "permutation", f"outputs differ by {error:.2g}"


def _cut(program: Trial, groups: Sequence[Group], rng: random.Random) -> Iterator[tuple[str, str]]:
    chosen = orders(groups, rng, lambda n: rng.randint(1, n - 1))
    step = Step("cut", {key: index.sort(-1).values for key, index in chosen.items()})
    keep = keep_by_axis(program.get(AxisMap), step.keep)
    masked = MaskedRun(program, keep).run(*program.values)
    with program.rewritten(step) as origin:
        program.graph.lint()
        values = run(program)
    ragged = any(index.dim() > 1 for index in step.keep.values())
    yield from _parameters(program, origin, keep, ragged)
    yield from _partial(program, origin, values, ragged)
    if (error := difference(masked, outputs(program, values))) > TOLERANCE:
        yield "mask", f"outputs differ by {error:.2g}"


def _parameters(program: Trial, origin: Mapping[str, Tensor], keep: Any, ragged: bool) -> Iterator[tuple[str, str]]:
    before, axes = program.state, program.get(AxisMap)
    for name, index in origin.items():
        if index.numel() != math.prod(kept_size(dim, keep) for dim in axes.state[name]):
            yield "count", f"{name} has shape {tuple(index.shape)}"
        if not (_is_distinct(index) if ragged else _is_outer_product(index, before[name].shape)):
            yield "slices", f"{name} is not an outer product of increasing indices"


def _is_distinct(index: Tensor) -> bool:
    """A choice that differs along another dim is no outer product, but no element is taken twice."""
    return index.unique().numel() == index.numel() > 0


def _is_outer_product(index: Tensor, shape: Sequence[int]) -> bool:
    if index.dim() != len(shape) or not index.numel():
        return False
    if index.shape == shape:
        return bool((index.flatten().diff() == 1).all())
    expected, stride = torch.zeros((), dtype=torch.long), 1
    for i in reversed(range(len(shape))):
        along = index.movedim(i, -1).reshape(-1, index.shape[i])[0] // stride % shape[i]
        if (along.diff() <= 0).any():
            return False
        expected = expected + (along * stride).view(-1, *[1] * (len(shape) - 1 - i))
        stride *= shape[i]
    return torch.equal(index, expected)


def _partial(
    program: Trial, origin: Mapping[str, Tensor], values: Mapping[fx.Node, Any], ragged: bool
) -> Iterator[tuple[str, str]]:
    """Compare every value with the partial program's. Where a choice differs along an outer axis, an intermediate value
    may hold its elements in another order than the original."""
    before = program.state
    cut = {name: index for name, index in origin.items() if index.shape != before[name].shape}
    there = {name: _survivors(before[name], index) for name, index in cut.items()}
    results = set(program.graph.output_node().all_input_nodes)
    for node, partial in run_partially(program.graph, there):
        strict = node in results
        if partial is None and not strict:
            continue
        for got, (expected, present) in _pairs(values[node], partial or whole(node.meta["val"])):
            if strict and (got.shape != expected.shape or not present.all()):
                yield "cut", f"output {node.name} has shape {tuple(got.shape)}, {tuple(expected.shape)} before"
                return
            error = _elements_differ(got, expected[present > 0], ragged and not strict)
            if error > TOLERANCE:
                yield "cut", f"{node.name} ({node.target}) differs by {error:.2g}"
                return


def _survivors(tensor: Tensor, index: Tensor) -> Tensor:
    there = torch.zeros(tensor.numel(), dtype=torch.float64)
    there[index.flatten()] = 1
    return there.view(tensor.shape)


def _pairs(got: Any, partial: Any) -> Iterator[tuple[Tensor, Any]]:
    if isinstance(got, list | tuple):
        for g, p in zip(got, partial, strict=True):
            yield from _pairs(g, p)
    elif got.is_floating_point():
        yield got, partial


def _elements_differ(got: Tensor, expected: Tensor, unordered: bool) -> float:
    got = got.flatten()
    if got.numel() != expected.numel() or not got.numel():
        return 0.0
    if torch.equal(got, expected):
        return 0.0
    if unordered:
        got, expected = got.sort().values, expected.sort().values
    return difference([expected], [got])


def run(program: Trial) -> dict[fx.Node, Any]:
    """The value of every node."""
    env: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = node.meta["val"]
        elif node.op == "get_attr":
            env[node] = graph.get_attr(program.module, node.target).detach()
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)
    return env


def outputs(program: Trial, env: Mapping[fx.Node, Any]) -> list[Tensor]:
    return [env[node] for node in program.graph.output_node().args[0]]


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest value; inf where shapes differ or a value is not finite.

    Values below a thousandth count as if they were one: what cancels to rounding errors says nothing.
    """
    worst = 0.0
    for x, y in zip(before, after, strict=True):
        if x.shape != y.shape:
            return math.inf
        gap = float((x - y).abs().max() / x.abs().max().clamp(min=1e-3)) if x.numel() else 0.0
        worst = max(worst, math.inf if math.isnan(gap) else gap)
    return worst
