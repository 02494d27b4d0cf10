"""From a model to a Program: traced once, valid for every batch and length.

capture(model)                     a causal language model of transformers: inputs are made up from its config
capture(module, (x, y))            any module: the example inputs say which tensors it takes
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from fxcompress import compat, graph
from fxcompress.bounded import quoted
from fxcompress.canonical import canonicalize
from fxcompress.errors import CaptureError
from fxcompress.evaluating import evaluating
from fxcompress.program import Origin, Program
from fxcompress.replacements import FUNCTIONS, replaced
from fxcompress.unrounded import unrounded

TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")  # of a causal language model, (batch, length) each
_PREFIX = "model."  # the wrapper's name for the user's model, taken off every name in the graph


def capture(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Mapping[str, Tensor] | None = None,
    dynamic_shapes: Mapping[str, Mapping[int, Any]] | None = None,
) -> Program:
    """Trace a model in eval mode into a Program that shares its parameters.

    Constants that the class computes and a cast of the model has rounded are taken whole, as loading would.

    ``example_inputs``: tensors by name or by position; not needed for models of transformers, whose forward takes
    ``input_ids``, ``attention_mask`` and ``position_ids``, (batch, length) each. ``dynamic_shapes``: for each input the
    dims whose size may differ, as ``torch.export`` takes them; by default all but the last dim of a tensor of up to
    three dims, both dims of token ids, and the batch of anything larger.

    Raises CaptureError with module path, op and source line when the model cannot be traced.
    """
    _require_one_place(model)
    inputs = _named_inputs(model, example_inputs)
    with unrounded(model):
        program = _traced(model, inputs, dynamic_shapes)
        if example_inputs is None and _looks_up(program, "position_ids"):
            return _counting_itself(model, inputs) or program
        return program


def _require_one_place(model: nn.Module) -> None:
    """Raise CaptureError for what is no module, and for one that is spread out or loaded in part."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{quoted(model)} is no model: pass a torch.nn.Module that is built and loaded")
    places: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        places.setdefault(parameter.device, name)
    if len(places) > 1:
        said = " and ".join(f"{name} on {device}" for device, name in places.items())
        raise CaptureError(f"{type(model).__name__} has {said}: load all of it on one device, or all on meta")


def _counting_itself(model: nn.Module, inputs: Mapping[str, Tensor]) -> Program | None:
    """The model without positions given, where it counts them by its mask and is not to be told others."""
    try:
        own = _traced(model, {k: v for k, v in inputs.items() if k != "position_ids"}, None)
    except CaptureError:  # it takes them from a table up to a fixed length
        return None
    return own if _looks_up(own, "attention_mask") else None


def _traced(
    model: nn.Module, inputs: dict[str, Tensor], dynamic_shapes: Mapping[str, Mapping[int, Any]] | None
) -> Program:
    shapes = dict(dynamic_shapes or _dynamic_shapes(model, inputs))
    try:
        with evaluating(model), replaced(model):
            exported = compat.export(
                _Forward(model, tuple(inputs)), tuple(inputs.values()), (tuple(shapes.get(n) for n in inputs),)
            )
    except CaptureError:
        raise
    except Exception as error:
        raise _explain(error, model) from error
    return _program(model, exported, tuple(inputs))


def _looks_up(program: Program, name: str) -> bool:
    """Are rows of an embedding looked up by what is computed from an input?"""
    made_of = {node for node in program.graph.find_nodes(op="placeholder") if node.name == name}
    for node in graph.calls(program.graph):
        index = node.args[1] if node.target is torch.ops.aten.embedding.default else None
        if index in made_of:
            return True
        if index is None and made_of & set(node.all_input_nodes):
            made_of.add(node)
    return False


class _Forward(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if isinstance(model, PreTrainedModel) else {}

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.options)


def _named_inputs(model: nn.Module, example: tuple[Tensor, ...] | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    accepted = list(inspect.signature(model.forward).parameters)
    if isinstance(example, Mapping):
        return dict(example)
    if isinstance(example, Tensor):
        example = (example,)
    if example is not None:
        return dict(zip(accepted, example, strict=False))
    if not isinstance(model, PreTrainedModel):
        inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
        if inner is not None:
            raise CaptureError(f"{type(model).__name__} wraps a {type(inner).__name__}: pass that, or example_inputs")
        raise CaptureError(f"{type(model).__name__} is a plain module: pass example_inputs, e.g. capture(model, (x,))")
    shape, device = (2, 24), model.device  # neither 0 nor 1, which tracing would take for constants
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    positions = torch.arange(shape[1], device=device).repeat(shape[0], 1)
    made = dict(zip(TOKEN_INPUTS, (ids, torch.ones_like(ids), positions), strict=True))
    return {name: tensor for name, tensor in made.items() if name in accepted}


def _dynamic_shapes(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Which dims may differ. Token inputs share one batch and one length, so that the graph has two symbols."""
    if isinstance(model, PreTrainedModel) and all(t.dim() == 2 for t in inputs.values()):
        sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2)}
        return dict.fromkeys(inputs, sizes)
    return {name: _dynamic_dims(tensor) for name, tensor in inputs.items()}


def _dynamic_dims(tensor: Tensor) -> dict[int, Any]:
    if tensor.is_floating_point():
        free = tensor.dim() - 1 if tensor.dim() <= 3 else 1
    else:
        free = tensor.dim()
    return dict.fromkeys(range(max(free, 1)), torch.export.Dim.AUTO)


def _program(model: nn.Module, exported: torch.export.ExportedProgram, inputs: tuple[str, ...]) -> Program:
    lifted = compat.unlift(exported)
    copied = fx.Graph()
    output = copied.graph_copy(lifted.graph, {})
    for node in graph.states(copied):
        node.target = node.target.removeprefix(_PREFIX)
    for node, name in zip(copied.find_nodes(op="placeholder"), inputs, strict=True):
        node.target = name
        node._rename(name)
    copied.output(tuple(pytree.tree_leaves(output)))
    tensors, names = _tensors(model)
    first = {alias: name for name, aliases in names.items() for alias in aliases}
    root: dict[str, Any] = {}
    for node in graph.states(copied):
        node.target = first.get(node.target, node.target)
        root[node.target] = tensors[node.target] if node.target in tensors else _of_graph(lifted, node.target)
    module = fx.GraphModule(root, copied)
    canonicalize(module)
    for node in module.graph.nodes:  # after inlining: nested graphs have stacks of their own
        _strip_stack(node)
    used = {node.target for node in graph.states(module.graph)}
    unused = {name: tensor for name, tensor in tensors.items() if name not in used}
    config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    origin = Origin(type(model), config if isinstance(model, PreTrainedModel) else None, generation, _hooked(model))
    values = graph.valued(module.graph)
    return Program(module, inputs, exported.call_spec.out_spec, origin, names, unused, _valued=values)


def _hooked(model: nn.Module) -> tuple[str, ...]:
    """Modules with hooks of the caller's, which the graph follows and no config says."""
    return tuple(name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks)


def _strip_stack(node: fx.Node) -> None:
    stack = node.meta.get("nn_module_stack")
    if stack:
        inner = {k: (path.removeprefix("model").removeprefix("."), kind) for k, (path, kind) in stack.items()}
        node.meta["nn_module_stack"] = {k: v for k, v in inner.items() if v[0]}


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The model's own tensors, shared and not copied, by their first names; and all names of each."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    aliases: dict[int, list[str]] = {}
    for name, tensor in named:
        aliases.setdefault(id(tensor), []).append(name)
    names = {first: (first, *others) for first, *others in aliases.values()}
    return {name: tensor for name, tensor in named if name in names}, names


def _of_graph(lifted: nn.Module, name: str) -> Any:
    """A constant or a nested graph that tracing made: it has no name in the model."""
    try:
        return graph.get_attr(lifted, _PREFIX + name)
    except AttributeError:
        return graph.get_attr(lifted, name)


def _explain(error: Exception, model: nn.Module) -> CaptureError:
    """Say where in the user's model tracing stopped, and what to try."""
    frames = traceback.extract_tb(error.__traceback__)
    sources = {inspect.getsourcefile(type(module)) for module in model.modules()}
    inside = [frame for frame in frames if frame.filename in sources]
    where = ""
    if inside:
        last = inside[-1]
        where = f"\n  at {last.filename}:{last.lineno} in {last.name}: {last.line}"
    owners = _modules_on_stack(error, model)
    path = f" in module {owners[-1]!r}" if owners else ""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CaptureError(
        f"{type(model).__name__} cannot be captured{path}: {first_line}{where}\n{_REACH}"
        if isinstance(model, PreTrainedModel)
        else f"{type(model).__name__} cannot be captured{path}: {first_line}{where}\n{_ADVICE}"
    )


_ADVICE = (
    "  Tracing needs shapes and branches that do not depend on tensor values. Try example_inputs of the shapes the"
    " model is used with, replace the line by tensor code (torch.where instead of if), or put it into a"
    " torch.library.custom_op, which is captured as one node."
)
_REACH = (
    "  A loop over the sequence, or an attention that does not go through any function that capture replaces, is traced"
    f" as it is written, for one length. Replaced are attention, masks and experts of transformers' registries, and"
    f" {', '.join(FUNCTIONS)}."
)


def _modules_on_stack(error: Exception, model: nn.Module) -> list[str]:
    """Paths of the modules whose forward was running, outermost first."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    out, tb = [], error.__traceback__
    while tb is not None:
        owner = tb.tb_frame.f_locals.get("self")
        if id(owner) in paths:
            out.append(paths[id(owner)])
        tb = tb.tb_next
    return out
