"""What a plan did to the model that it began with: replayed on a copy without values.

positions of a tensor's dim     which of the original indices are left, in order
gone                            what stood where a module was removed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress import blocks, graph
from fxcompress.axes import AxisMap
from fxcompress.capture import capture
from fxcompress.errors import CompressError
from fxcompress.export.own.spec import Absent
from fxcompress.keep import is_cut, kept_indices
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.rewrite import keep_by_axis, rewrite

_TOKENS = {torch.ops.fxcompress.attention.default, torch.ops.aten.scaled_dot_product_attention.default}
_STATE = {
    torch.ops.fxcompress.ssd_scan.default,
    torch.ops.fxcompress.selective_scan.default,
    torch.ops.fxcompress.gated_delta.default,
}


@dataclass
class Replay:
    """``kept``: positions by tensor and dim, None where they differ along another dim. ``gone``: by module path."""

    model: nn.Module
    kept: dict[str, dict[int, Tensor | None]] = field(default_factory=dict)
    gone: dict[str, Absent] = field(default_factory=dict)


def replay(program: Program, steps: Iterable[Step]) -> Replay:
    """Carry the plan out again on the origin, on ``meta``."""
    kind: Any = program.origin.model_class
    with torch.device("meta"):
        model = kind(program.origin.config).eval()
    out = Replay(model)
    steps = list(steps)
    forms = _forms(model, [path for step in steps for path in step.remove])
    again = capture(model)
    for step in steps:
        _note_cuts(out, again, step)
        for path in step.remove:
            out.gone[path] = _absent(again, path, forms.get(path))
        rewrite(again, step)
    return out


def _forms(model: nn.Module, paths: Iterable[str]) -> dict[str, Any]:
    """What removed modules gave, written down when the model runs next."""
    forms: dict[str, Any] = {}

    def note(path: str) -> Any:
        return lambda _, __, output: forms.__setitem__(path, output)

    for path in paths:
        model.get_submodule(path).register_forward_hook(note(path))
    return forms


def _note_cuts(out: Replay, program: Program, step: Step) -> None:
    axes = program.get(AxisMap)
    keep = keep_by_axis(axes, step.keep)
    for name, dims in axes.state.items():
        for i, dim in enumerate(dims):
            if not is_cut(dim, keep):
                continue
            try:
                index: Tensor | None = kept_indices(dim, keep, axes.outer)
            except KeyError:  # the choice differs along an axis of another dim
                index = None
            before = out.kept.setdefault(name, {})
            if i in before and index is not None:
                earlier = before[i]
                index = None if earlier is None else earlier[index]
            before[i] = index


def _absent(program: Program, path: str, form: Any) -> Absent:
    """The law by which a module is gone, before it is."""
    block = blocks.read_block(program, path)
    inside = [node for node in graph.calls(program.graph) if path in graph.module_paths(node)]
    law = "pass" if block.output in inside else "zero"
    counts = [what for what, ops in (("tokens", _TOKENS), ("state", _STATE)) if any(n.target in ops for n in inside)]
    return Absent(law=law, gives=_places(path, form), counts=tuple(counts))  # type: ignore[arg-type]


def _places(path: str, form: Any) -> Any:
    if isinstance(form, Tensor):
        return "hidden"
    if isinstance(form, tuple) and form and isinstance(form[0], Tensor):
        return tuple("hidden" if i == 0 else None for i in range(len(form)))
    raise CompressError(f"{path} gives {type(form).__name__}, which nothing can stand in for")
