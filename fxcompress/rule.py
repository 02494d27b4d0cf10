"""All facts about an op in one record: how its operands' dims are tied, what it reduces, what it costs.

Where algebra suffices a rule is one line, in the notation of einops::

    einop(aten.linear.default, "... i, o i, o -> ... o")

(``fxcompress.einop``); operands are the op's tensor arguments in the order of its schema, optional ones may be absent.
Movement ops have functions instead (``fxcompress.rules``). An op without a rule pins all dims that touch it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.address import Input, Values
from fxcompress.axis import Axis, Dim, Dims, Equations, Size, size
from fxcompress.einop import Einop
from fxcompress.keep import Keep, Outer, is_cut, kept_before, kept_indices, kept_size

AVERAGE = "average"  # a reduction that divides by the number of indices: over those that are kept


@dataclass(frozen=True)
class Reduction:
    """An op sums, averages or compares over one dim of an operand; removed indices take part as ``neutral``."""

    operand: fx.Node
    dim: int
    neutral: float | str


@dataclass
class Call:
    """One call of an op, as its rule sees it: the arguments by schema name, the dims of each operand, the equations."""

    node: fx.Node
    env: Mapping[fx.Node, Any]
    equations: Equations
    reductions: list[Reduction] = field(default_factory=list)
    roles: list[tuple[str, Dim]] = field(default_factory=list)
    mixed: list[Dim] = field(default_factory=list)
    letters: Mapping[str, Dim] = field(default_factory=dict)  # dims by the letters that the cost functions know
    contexts: list[tuple[Dim, list[Dim], list[Dim]]] = field(default_factory=list)
    least: list[tuple[Dim, int, str]] = field(default_factory=list)
    values: Mapping[fx.Node, Values | list[Values]] = field(
        default_factory=dict
    )  # what the operands' values point into
    addressing: set[fx.Node] = field(default_factory=set)  # the operands whose values this op uses as addresses
    points: Values | list[Values] = None  # what the output's values point into, for each output where there are several

    def __post_init__(self) -> None:
        self.args = bind(self.node)

    def arg(self, name: str) -> Any:
        return self.args[name]

    def dims(self, operand: Any) -> Dims:
        """Dims of an operand, given as a node or by its name in the schema."""
        return self.env[self.args[operand] if isinstance(operand, str) else operand]

    def operands(self) -> list[fx.Node]:
        """The tensor operands in schema order, tensors within lists included, absent ones left out."""
        flat: list[Any] = []
        for value in self.args.values():
            flat += value if isinstance(value, list | tuple) else [value]
        return [a for a in flat if isinstance(a, fx.Node) and isinstance(self.env.get(a), tuple)]

    @property
    def shape(self) -> tuple[Size, ...]:
        return shape_of(self.node.meta["val"])

    @property
    def name(self) -> str:
        return f"{self.node.name} ({op_name(self.node.target)})"

    def tie(self, x: Dim, y: Dim) -> None:
        self.equations.tie(x, y, self.name)

    def cut(self, dim: Dim, offsets: list[Size]) -> list[Dim]:
        return self.equations.cut(dim, offsets, self.name)

    def pin(self, dim: Dim, why: str) -> None:
        self.equations.pin(dim, f"{why}, at {self.name}")

    def reduce(self, operand: Any, dim: int, neutral: float | str = 0.0) -> None:
        """Say that the op reduces this dim; averaging also mixes it, so that no choice inside may differ along it."""
        node = self.args[operand] if isinstance(operand, str) else operand
        dim %= len(self.env[node])
        self.reductions.append(Reduction(node, dim, neutral))
        if neutral != 0.0:
            self.mix(self.env[node][dim])

    def mix(self, dim: Dim) -> None:
        """Values at different indices of this dim meet in one output element whose other axes are unchanged."""
        self.mixed.append(dim)

    def limit(self, dim: Dim, context: list[Dim], apart: Sequence[Dim] = ()) -> None:
        """A choice along ``dim`` may differ along the axes of these dims at the most, and not along those ``apart``."""
        self.contexts.append((dim, context, list(apart)))

    def need(self, dim: Dim, count: int, why: str) -> None:
        """At least so many indices of the dim must stay."""
        self.least.append((dim, count, why))

    def address(self, operand: Any, dim: Dim) -> None:
        """The operand's values are positions on the dim: they follow its cuts, or else it is pinned."""
        node = self.args[operand] if isinstance(operand, str) else operand
        self.addressing.add(node)
        self.limit(dim, [dim])  # one address stands for the whole of an index, wherever the axis occurs
        into = self.values.get(node)
        if isinstance(into, Input):
            into.addressed.append(dim)
        elif into is None:
            self.pin(dim, "it is addressed by data")
        elif size(into) != size(dim):  # type: ignore[arg-type]
            self.pin(dim, "it is addressed by positions on a dim of another size")
            self.pin(into, "its positions address a dim of another size")  # type: ignore[arg-type]
        else:
            self.tie(into, dim)  # type: ignore[arg-type]

    def pointing(self) -> list[fx.Node]:
        """The operands whose values point into something and are not used as addresses here."""
        nodes = self.node.all_input_nodes
        return [n for n in nodes if self.values.get(n) is not None and n not in self.addressing]

    def fresh(self, shape: tuple[Size, ...] | None = None) -> Dims:
        return tuple((Axis(n),) if n != 1 else () for n in (self.shape if shape is None else shape))


@dataclass(frozen=True)
class Sizing:
    """What remains of the dims around a call after a cut, for rules that give an op's size arguments anew."""

    args: Mapping[str, Any]
    out: Any  # dims of the output, a list of them where there are several
    env: Mapping[fx.Node, Any]
    keep: Keep
    outer: Outer

    def dims(self, operand: Any) -> Dims:
        return self.env[self.args[operand] if isinstance(operand, str) else operand]

    def size(self, dim: Dim) -> int:
        return kept_size(dim, self.keep)

    def sizes(self, old: Sequence[Any], dims: Dims) -> list[Any]:
        """Sizes for dims in the place of old ones: those that no cut touches stay as they were written."""
        return [self.size(d) if is_cut(d, self.keep) and o != -1 else o for o, d in zip(old, dims, strict=True)]

    def kept(self, dim: Dim) -> list[int]:
        """The kept indices of a dim whose choice depends on no other dim."""
        return kept_indices(dim, self.keep, self.outer).tolist()

    def before(self, dim: Dim, position: int) -> int:
        """How many kept indices of the dim lie before an old position."""
        return kept_before(dim, position, self.keep)


Infer = Callable[[Call], Any]
Resize = Callable[[Sizing], Mapping[str, Any]]
Flops = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Rule:
    """``infer`` emits equations and returns the output's dims (a list of them where the op returns several tensors).

    ``resize`` gives the arguments that hold sizes anew, by schema name, from the sizes that are kept.
    ``moves``: the output's values are the operand's, in other places. ``flops`` and ``cache`` are functions of the
    sizes by letter: operations of a call; state elements kept for generation (per token, per sequence). ``context``
    names the letter that runs over the cached tokens.
    """

    infer: Infer
    resize: Resize | None = None
    einop: Einop | None = None
    flops: Flops | None = None
    cache: Callable[[Mapping[str, Any]], tuple[Any, Any]] | None = None
    context: str | None = None
    moves: bool = False


RULES: dict[Any, Rule] = {}


def rule(
    *ops: Any, resize: Resize | None = None, flops: Flops | None = None, moves: bool = False
) -> Callable[[Infer], Infer]:
    """Register a function as the rule of some ops. For ``flops`` the function names sizes in ``call.letters``."""

    def register(infer: Infer) -> Infer:
        for op in ops:
            RULES[op] = Rule(infer, resize, flops=flops, moves=moves)
        return infer

    return register


def einop(
    op: Any,
    spec: str | Callable[[Call], str],
    *,
    roles: Mapping[str, str] | None = None,
    sizes: Mapping[str, Callable[[Call], int]] | None = None,
    pins: Mapping[str, str] | None = None,
    addresses: Mapping[str, str] | None = None,
    resize: Resize | None = None,
    flops: Flops | None = None,
    cache: Callable[[Mapping[str, Any]], tuple[Any, Any]] | None = None,
    context: str | None = None,
) -> None:
    """Register the rule of one op as a string.

    ``sizes`` gives a letter that occurs in products only; ``addresses`` the letter that an operand's values point into.
    """
    algebra = Einop(spec, roles or {}, sizes or {}, pins or {}, addresses or {})
    RULES[op] = Rule(algebra.infer, resize, algebra, flops, cache, context)


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their names in the op's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): a for i, a in enumerate(node.args)}
    out = {}
    for i, parameter in enumerate(node.target._schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(parameter.name, parameter.default_value)
        out[parameter.name] = value
    return out


def shape_of(value: Tensor) -> tuple[Size, ...]:
    return tuple(n if isinstance(n, int) else _expression(n) for n in value.shape)


def _expression(n: torch.SymInt) -> Size:
    expr = n.node.expr
    return int(expr) if expr.is_Integer else expr


def op_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    return target.__name__ if target in (operator.getitem,) else str(target)
