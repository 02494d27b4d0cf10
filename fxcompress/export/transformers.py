"""A compressed model as an ordinary model of its class, when the class's config can say it.

Lists of layers are renumbered where layers were removed. Equal shapes are not enough: some classes derive constants
from sizes, so the logits are compared too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fxcompress import verify
from fxcompress.axes import AxisMap
from fxcompress.capture import capture
from fxcompress.export.config import NotExpressible, find_configs
from fxcompress.export.constants import differing_constants
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.token_fields import present_config, present_generation_config


def to_transformers(program: Program, steps: Iterable[Step]) -> Any:
    """A model of the origin's class with a smaller config and the program's weights.

    Raises NotExpressible when no config of the class has these shapes, or when its logits differ.
    """
    origin = program.origin
    if origin.config is None:
        raise NotExpressible(
            f"{origin.model_class.__name__} is a plain module: it has no config to describe the result"
        )
    names = renumbering(program, steps)
    tensors = file_tensors(program, names)
    target = {name: tuple(t.shape) for name, t in _with_aliases(program, names, tensors).items()}
    persistent = _persistent_names(origin)
    target = {name: shape for name, shape in target.items() if persistent is None or _old(name, names) in persistent}
    weights = {name: t for name, t in tensors.items() if name in target}
    base = type(origin.config).from_dict(present_config(program))
    why = ""
    for config in itertools.islice(
        find_configs(origin.model_class, base, target, removed_layers(program, steps)), _TRIED
    ):
        model = _build(program, config, weights)
        why = _why_not(program, model)
        if not why:
            return model
    raise NotExpressible(f"{origin.model_class.__name__} with the sizes of the result {why}")


_TRIED = 6  # configs with the right shapes whose models are compared


def _build(program: Program, config: Any, weights: dict[str, Tensor]) -> Any:
    kind: Any = program.origin.model_class
    if program.is_meta:
        with torch.device("meta"):
            model = kind(config)
    else:
        model = kind.from_pretrained(None, config=config, state_dict=weights, dtype=_dtype(program))
        model.generation_config = _generation_config(program) or model.generation_config
    return model.eval()


def _generation_config(program: Program) -> Any:
    given, values = program.origin.generation_config, present_generation_config(program)
    return given if values is None else type(given).from_dict(values)


def _why_not(program: Program, model: Any) -> str:
    """What the model does differently from the program, empty if nothing; on meta only sizes of groups are compared."""
    if program.is_meta:
        ours, theirs = (sorted(g.sizes for g in p.get(AxisMap).groups) for p in (program, capture(model)))
        return "" if ours == theirs else "divides them among its heads and groups in another way"
    inputs = dict(zip(program.inputs, verify.probe(program), strict=True))
    with torch.no_grad():
        ours = program(**inputs).logits
        try:
            theirs = model(**inputs).logits  # as a user would call it, cache and all
        except (RuntimeError, IndexError, ValueError, StopIteration) as failure:
            return f"does not run: {str(failure).strip().splitlines()[0] if str(failure) else type(failure).__name__}"
    mask = inputs.get("attention_mask")
    error = verify.difference(_real(ours, mask), _real(theirs, mask))
    if error <= verify.tolerance(program):
        return ""
    return f"computes something else, its logits differ by {error:.2g}: {_reason(program, model)}"


def _reason(program: Program, model: Any) -> str:
    """Named constants where there are any: a class may derive some from sizes."""
    named = differing_constants(program, capture(model))
    if not named:
        return "its config fixes how the sizes are divided"
    others = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    return f"its class derives a constant from a size that was cut, {named[0]}{others}"


def _real(logits: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Logits at tokens that are not padding: what models give at padding is nobody's business."""
    return [logits if mask is None else logits[mask.bool()]]


def removed_layers(program: Program, steps: Iterable[Step]) -> dict[str, list[int]]:
    """Positions removed from each list of layers, by the list's original length."""
    out: dict[str, list[int]] = {}
    lengths = _original_lengths(program)
    for path in filter(is_item, (path for step in steps for path in step.remove)):
        container, _, position = path.rpartition(".")
        out.setdefault(str(lengths[container]), []).append(int(position))
    return out


def _original_lengths(program: Program) -> dict[str, int]:
    """How many items each list of modules had in the origin, read off the names of its tensors."""
    lengths: dict[str, int] = {}
    for aliases in program.names.values():
        for name in aliases:
            for match in re.finditer(r"\.(\d+)(?=\.)", name):
                container = name[: match.start()]
                lengths[container] = max(lengths.get(container, 0), int(match[1]) + 1)
    return lengths


def renumbering(program: Program, steps: Iterable[Step]) -> dict[str, str]:
    """Every tensor's name in the program -> its name in a checkpoint without the removed layers."""
    removed = [path for step in steps for path in step.remove]
    out = {}
    for name in dict.fromkeys([*program.names, *program.used_names()]):
        aliases = program.names.get(name, (name,))  # a shared tensor stays while one of its owners does
        left = [a for a in aliases if not any(a.startswith(path + ".") for path in removed)]
        if left:
            out[name] = renumbered(left[0], removed)
    return out


def is_item(path: str) -> bool:
    """Is it an item of a list of modules? What follows it is counted anew; a part of an item leaves a gap."""
    return path.rpartition(".")[2].isdigit()


def renumbered(name: str, removed: list[str]) -> str:
    removed = [path for path in removed if is_item(path)]
    for path in removed:
        container, _, _ = path.rpartition(".")
        match = re.match(re.escape(container) + r"\.(\d+)\.", name)
        if match:
            below = sum(p.startswith(container + ".") and int(p.rpartition(".")[2]) < int(match[1]) for p in removed)
            return f"{container}.{int(match[1]) - below}.{name[match.end() :]}"
    return name


def file_tensors(program: Program, names: dict[str, str]) -> dict[str, Tensor]:
    """The program's tensors by their names in the checkpoint, each tensor once."""
    state = program.state
    return {new: state[old].detach() for old, new in names.items() if old in state}


def _with_aliases(program: Program, names: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors under all of their names, as a model's state dict lists them."""
    out = dict(tensors)
    for first, aliases in program.names.items():
        if first in names and names[first] in tensors:
            for alias in aliases:
                out.setdefault(names[first] if alias == first else alias, tensors[names[first]])
    return out


def _persistent_names(origin: Any) -> set[str] | None:
    """Names that a checkpoint of the origin's class holds: buffers that are computed anew are not among them."""
    with torch.device("meta"):
        return set(origin.model_class(origin.config).state_dict())


def _old(name: str, names: dict[str, str]) -> str:
    return next((old for old, new in names.items() if new == name), name)


def _dtype(program: Program) -> torch.dtype:
    return next(p.dtype for _, p in program.parameters() if p.is_floating_point())
