"""The laws that every structural rewrite obeys, checked on the models at hand.

1. *shapes*: the rewritten graph lints, and shapes propagate for a batch and a length not seen at capture.
2. *prune equals mask*: the original with the removed indices at their neutral elements gives the same outputs.
3. *permutation*: permuting an axis consistently over its group changes nothing.
4. *count*: the number of parameters is what the sizes of the axes say.

Of pruned weights: *pattern*, weights that have to be zero and are not; *elsewhere*, other tensors that have changed;
*finite*, outputs that are not.

Of matrices that sparse ops multiply by: *unpacked equals dense*, weights that are others when the matrix is brought
back, and other tensors that have changed; *sparse equals dense*, the outputs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress import graph
from fxcompress.axes import AxisMap
from fxcompress.axis import size
from fxcompress.border import Border
from fxcompress.errors import CaptureError, ProofError
from fxcompress.evaluating import evaluating
from fxcompress.keep import kept_size
from fxcompress.lowered import unpacked
from fxcompress.masked import MaskedRun, sizes_at_run_time
from fxcompress.ondemand import widened
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.rewrite import keep_by_axis, rewrite
from fxcompress.sparse import broken
from fxcompress.streamed import META
from fxcompress.unrounded import unrounded

# Largest relative error of the outputs, by the dtype the model computes in: float64 shows the algebra, the others
# leave room for sums that run in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Law:
    """The outcome of one law: ``error`` against ``tolerance``, or why it was not checked."""

    name: str
    error: float | None
    tolerance: float = 0.0
    why: str = ""

    @property
    def holds(self) -> bool:
        return self.error is None or self.error <= self.tolerance

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name}: not checked ({self.why})"
        return f"{self.name}: {'holds' if self.holds else 'FAILS'}, error {self.error:.2g} (at most {self.tolerance:g})"


def check(before: Program, after: Program, step: Step) -> list[Law]:
    """All laws for one step from ``before`` to ``after``. On meta weights only those that need no values."""
    laws = [shapes(after), count(before, after, step)]
    if step.sparse:
        return [*laws, *zeros(before, after, step)]
    if step.kernels:
        return [*laws, unpacked_equals_dense(before, after, step), sparse_equals_dense(before, after)]
    if before.is_meta:
        why = "weights on meta have no values"
        return laws + [Law(name, None, why=why) for name in ("prune equals mask", "permutation")]
    before, after = before.widened(), after.widened()
    return [*laws, prune_equals_mask(before, after, step), permutation(before, step)]


def require(laws: list[Law], what: str) -> None:
    failed = [law for law in laws if not law.holds]
    if failed:
        said = "; ".join(map(str, failed))
        raise ProofError(f"{what}: {said}. The result is withheld; please report this with the model's config")


@torch.no_grad()
def shapes(program: Program) -> Law:
    """Number of outputs whose shape is not what the inputs' sizes say, for sizes not seen at capture."""
    program.graph.lint()
    inputs = probe(program, batch=3, length=37)
    if program.readers:  # shapes need no values
        inputs = [tensor.to(META) for tensor in inputs]
    real = graph.shapes_for(program.module, *inputs)
    expected = _expected_shapes(program, inputs)
    wrong = sum(tuple(a.shape) != b for a, b in zip(graph.tensors(list(real)), expected, strict=True))
    return Law("shapes", float(wrong))


@torch.no_grad()
def captured_equals_model(model: torch.nn.Module, program: Program) -> Law:
    """The graph computes what the model does, at sizes not seen at capture; padding does not count."""
    name = "captured equals model"
    if program.is_meta:
        return Law(name, None, why="weights on meta have no values")
    inputs = dict(zip(program.inputs, probe(program), strict=True))
    ours = _own_outputs(program, inputs)
    exact = program.widened()
    if exact is not program:  # it runs in its own types; compared it is without what they round off
        program, ours = exact, _own_outputs(exact, inputs)
    try:
        with evaluating(model), unrounded(model), widened(model) if program.readers else contextlib.nullcontext():
            theirs = pytree.tree_leaves(model(**inputs))
    except Exception as error:  # the user's code: kernels for another device, say, fail in ways of their own
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        return Law(name, None, why=f"the model itself does not run on the probe: {why}")
    return Law(name, difference(*at_tokens(ours, theirs, inputs.get("attention_mask"))), tolerance(program))


def _own_outputs(program: Program, inputs: Mapping[str, Tensor]) -> Any:
    """Raises CaptureError where the graph does not run: tracing sees no mix of dtypes, for example."""
    try:
        return program.run(*inputs.values())
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        kinds = sorted({str(parameter.dtype).removeprefix("torch.") for _, parameter in program.parameters()})
        raise CaptureError(
            f"the captured graph of {program.origin.model_class.__name__}, with weights in {', '.join(kinds)}, does not"
            f" run: {said}"
        ) from error


def at_tokens(ours: Sequence[Any], theirs: Sequence[Any], mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs that both sides have, at tokens that are not padding: what models give there is nobody's business."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None]
    return [_real(a, mask) for a, _ in pairs], [_real(b, mask) for _, b in pairs]


def _real(output: Tensor, mask: Tensor | None) -> Tensor:
    return output if mask is None or output.shape[:2] != mask.shape else output[mask.bool()]


@torch.no_grad()
def prune_equals_mask(before: Program, after: Program, step: Step) -> Law:
    border = Border(before.get(AxisMap), keep_by_axis(before.get(AxisMap), step.keep))
    inputs = border.inputs(probe(before))
    masked = MaskedRun(before, border.keep, step.remove).run(*inputs)
    pruned = after.run(*border.renumbered(inputs))
    return Law("prune equals mask", difference(border.outputs(masked), pruned), tolerance(before))


@torch.no_grad()
def permutation(before: Program, step: Step) -> Law:
    if not step.keep:
        return Law("permutation", None, why="no axis was cut")
    axes = before.get(AxisMap)
    shuffled = {key: _shuffled(axes[key].sizes) for key in step.keep}
    permuted = before.clone()
    rewrite(permuted, Step("permutation", shuffled))
    border = Border(axes, keep_by_axis(axes, shuffled))
    inputs = probe(before)
    ours, theirs = before.run(*inputs), permuted.run(*border.renumbered(inputs))
    return Law("permutation", difference(border.outputs(ours), theirs), tolerance(before))


def _shuffled(sizes: tuple[int, ...]) -> Tensor:
    """A random order of the last axis for every row, none of them as it was: an identity would show nothing."""
    order = torch.rand(sizes, generator=torch.Generator().manual_seed(0)).argsort(-1)
    unchanged = (order == torch.arange(sizes[-1])).all(-1)
    order[unchanged] = order[unchanged].flip(-1)
    return order


def count(before: Program, after: Program, step: Step) -> Law:
    """Parameters that there are too many or too few, against the product of the kept sizes of each one's dims."""
    axes = before.get(AxisMap)
    keep = keep_by_axis(axes, step.keep)
    remaining = after.state
    expected = 0
    for name, tensor in before.parameters():
        if name in remaining:
            dims = axes.state.get(name)
            expected += tensor.numel() if dims is None else math.prod(kept_size(dim, keep) for dim in dims)
    got = sum(parameter.numel() for _, parameter in after.parameters())
    return Law("count", float(abs(expected - got)))


@torch.no_grad()
def zeros(before: Program, after: Program, step: Step) -> list[Law]:
    """Of pruned weights: the zeros are where the patterns ask for them, and nothing else has changed."""
    if before.is_meta:
        why = "weights on meta have no values"
        return [Law(name, None, why=why) for name in ("pattern", "elsewhere", "finite")]
    old, new = before.state, after.state
    shared = {n for n in old if old[n] is new[n] and before.readers.get(n) is after.readers.get(n)}
    changed = [n for n in old if n not in step.sparse and n not in shared]
    elsewhere = [n for n in changed if not torch.equal(before.read(n), after.read(n))]
    outputs = graph.tensors(list(after.run(*probe(after))))
    return [
        Law("pattern", float(sum(broken(after, step.sparse).values()))),
        Law("elsewhere", float(len(elsewhere))),
        Law("finite", float(sum(int((~x.isfinite()).sum()) for x in outputs if x.is_floating_point()))),
    ]


@torch.no_grad()
def unpacked_equals_dense(before: Program, after: Program, step: Step) -> Law:
    """Weights that are lost or moved in the forms that sparse ops hold, and other tensors that are not as before."""
    state, now = before.state, after.state
    wrong = sum(now.get(name) is not tensor for name, tensor in state.items() if name not in step.kernels)
    for name in step.kernels:
        ours, theirs = state[name], unpacked(after, name)
        wrong += int((ours != theirs).sum()) if ours.shape == theirs.shape else ours.numel()
    return Law("unpacked equals dense", float(wrong))


@torch.no_grad()
def sparse_equals_dense(before: Program, after: Program) -> Law:
    before, after = before.widened(), after.widened()
    inputs = probe(before)
    return Law("sparse equals dense", difference(before.run(*inputs), after.run(*inputs)), tolerance(before))


def difference(x: tuple | list, y: tuple | list) -> float:
    """Largest difference of the outputs, relative to the largest value; inf where one side is not finite."""
    worst = 0.0
    for a, b in zip(graph.tensors(list(x)), graph.tensors(list(y)), strict=True):
        if a.shape != b.shape or not torch.isfinite(b).all():
            return math.inf
        if not a.is_floating_point() and not torch.equal(a, b):
            return math.inf
        if a.is_floating_point() and a.numel():
            scale = a.abs().max().clamp(min=torch.finfo(a.dtype).tiny)
            worst = max(worst, float((a - b).abs().max() / scale))
    return worst


def tolerance(program: Program) -> float:
    """By the least exact dtype that the program computes in, which may be narrower than its weights."""
    dtypes = {p.dtype for _, p in program.parameters() if p.is_floating_point()}
    dtypes |= {dtype for node in graph.calls(program.graph) for dtype in node.args if isinstance(dtype, torch.dtype)}
    return max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=TOLERANCE[torch.float32])


def probe(program: Program, batch: int = 2, length: int = 19) -> list[Tensor]:
    """Inputs of a given batch and length: random tokens, with some padding on the left of the first row."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for node in program.graph.find_nodes(op="placeholder"):
        fake = node.meta["val"]
        shape = _concrete(fake.shape, program, batch, length)
        if node.name == "attention_mask":
            tensor = torch.ones(shape, dtype=fake.dtype)
            tensor[0, : shape[1] // 4] = 0
        elif node.name == "position_ids":
            tensor = torch.arange(shape[-1]).expand(shape).to(fake.dtype)
        elif fake.is_floating_point():
            tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(fake.dtype)
        else:
            tensor = torch.randint(_vocabulary(program, node), shape, generator=generator).to(fake.dtype)
        out.append(tensor.to(program.device))
    return out


def _concrete(shape: tuple, program: Program, batch: int, length: int) -> list[int]:
    values = dict(zip(program.symbols(), (batch, length, length + 1, length + 2), strict=False))
    return [int(n) if isinstance(n, int) else int(n.node.expr.subs(values)) for n in shape]


def _expected_shapes(program: Program, inputs: list[Tensor]) -> list[tuple[int, ...]]:
    output = next(node for node in program.graph.nodes if node.op == "output")
    fakes = [node.meta["val"] for node in output.args[0] if node is not None]
    values = sizes_at_run_time(program, inputs)
    return [tuple(n if isinstance(n, int) else int(n.node.expr.subs(values)) for n in fake.shape) for fake in fakes]


def _vocabulary(program: Program, node: torch.fx.Node) -> int:
    """How many token ids there are: the rows of the embedding that looks this input up."""
    axes = program.get(AxisMap)
    addressed = axes.inputs[node.name].addressed if node.name in axes.inputs else []
    return min((size(dim) for dim in addressed), default=2)  # type: ignore[type-var]
