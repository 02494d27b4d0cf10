"""How a result is an ordinary model: a class of transformers with a config, found for it and compared with it.

Equal shapes are not enough: some classes derive constants from sizes, so the logits are compared too. Nothing is
loaded for that: the model runs with the result's weights, each read where it is used.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress import verify
from fxcompress.axes import AxisMap
from fxcompress.capture import capture
from fxcompress.export.config import NotExpressible, find_configs
from fxcompress.export.constants import differing_constants
from fxcompress.export.names import checkpoint_names, removed_layers
from fxcompress.ondemand import buffers, on_demand
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.token_fields import present_config, present_generation_config

_TRIED = 6  # configs with the right shapes whose models are compared


@dataclass(frozen=True)
class Form:
    """A class and a config that have the shapes of a program, and what the program's tensors are called there."""

    model_class: Any
    config: Any
    program: Program
    names: Mapping[str, str]  # every name in the model -> the tensor's name in the program

    @property
    def generation_config(self) -> Any:
        given, values = self.program.origin.generation_config, present_generation_config(self.program)
        return given if values is None else type(given).from_dict(values)

    def on_meta(self) -> Any:
        """The model without values; what a checkpoint holds is in the dtype that it has in the program."""
        with torch.device("meta"):
            model = self.model_class(copy.deepcopy(self.config)).eval()  # running it chooses an attention
        dtypes = {name: tensor.dtype for name, tensor in self.program.state.items()}
        for name in model.state_dict():
            if self.names.get(name) in dtypes:
                tensor = model.get_parameter_or_buffer(name)
                tensor.data = tensor.data.to(dtypes[self.names[name]])
        return model

    def read(self, name: str) -> Tensor:
        """The value of a tensor by its name in the model."""
        return self.program.read(self.names[name])

    def running(self) -> Any:
        """The model with the program's weights, which it reads where it uses them."""
        return on_demand(self.on_meta(), self.read, self.program.device)

    def loaded(self) -> Any:
        """The model with its weights in memory, or on ``meta`` where the program has none."""
        if self.program.is_meta:
            return self.on_meta()
        weights = {name: self.read(name) for name in self.on_meta().state_dict()}
        model = self.model_class.from_pretrained(None, config=self.config, state_dict=weights, dtype=self.dtype)
        model.generation_config = self.generation_config or model.generation_config
        return model.eval()

    def write_config(self, folder: Path) -> None:
        """The files beside the weights that transformers reads."""
        config = type(self.config).from_dict(self.config.to_dict())
        config.architectures = [self.model_class.__name__]
        config.dtype = self.dtype
        config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for _, p in self.program.parameters() if p.is_floating_point())


def find_form(program: Program, steps: Sequence[Step]) -> Form:
    """A class of transformers and a config for a result.

    Raises NotExpressible when no config of the class has these shapes, or when its logits differ.
    """
    origin = program.origin
    if origin.config is None:
        raise NotExpressible(
            f"{origin.model_class.__name__} is a plain module: it has no config to describe the result"
        )
    names = checkpoint_names(program, steps)
    base = type(origin.config).from_dict(present_config(program))
    target = _target(program, names)
    differs, why = differences(program), ""
    configs = find_configs(origin.model_class, base, target, removed_layers(program, steps))
    for config in itertools.islice(configs, _TRIED):
        form = Form(origin.model_class, config, program, names)
        why = differs(form)
        if not why:
            return form
    raise NotExpressible(f"{origin.model_class.__name__} with the sizes of the result {why}")


def to_transformers(program: Program, steps: Iterable[Step]) -> Any:
    """A model of the origin's class with a smaller config and the program's weights: see ``find_form``."""
    return find_form(program, list(steps)).loaded()


def _target(program: Program, names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of what a checkpoint holds: buffers that the class computes are not among it."""
    with torch.device("meta"):
        persistent = set(program.origin.model_class(program.origin.config).state_dict())
    first = {alias: aliases[0] for aliases in program.names.values() for alias in aliases}
    held = {first.get(name, name) for name in persistent}
    state = program.state
    return {new: tuple(state[old].shape) for new, old in names.items() if old in held and old in state}


def differences(program: Program) -> Callable[[Form], str]:
    """What a form does differently from the program, empty if nothing; on meta only sizes of groups are compared."""
    if program.is_meta:
        return partial(_sizes_differ, program)
    exact = program.widened()
    inputs = dict(zip(program.inputs, verify.probe(program), strict=True))
    with torch.no_grad():
        ours = exact(**inputs).logits
    return partial(_logits_differ, exact, inputs, ours)


def _sizes_differ(program: Program, form: Form) -> str:
    ours, theirs = (sorted(g.sizes for g in p.get(AxisMap).groups) for p in (program, capture(form.on_meta())))
    return "" if ours == theirs else "divides them among its heads and groups in another way"


def _logits_differ(exact: Program, inputs: dict[str, Tensor], ours: Tensor, form: Form) -> str:
    """The model is compared in float32 at the least, but has to run in the type of its weights as well."""
    theirs: Tensor | str = _logits(form, inputs)
    if form.program is not exact and not isinstance(theirs, str):
        theirs = _logits(replace(form, program=exact), inputs)
    if isinstance(theirs, str):
        return f"does not run: {theirs}"
    error = verify.difference(*verify.at_tokens([ours], [theirs], inputs.get("attention_mask")))
    if error <= verify.tolerance(exact):
        return ""
    return f"computes something else, its logits differ by {error:.2g}: {_reason(form)}"


@torch.no_grad()
def _logits(form: Form, inputs: dict[str, Tensor]) -> Tensor | str:
    """What the model gives, called as a user would call it, cache and all; or why it does not run."""
    try:
        return form.running()(**inputs).logits
    except (RuntimeError, IndexError, ValueError, StopIteration) as failure:
        return str(failure).strip().splitlines()[0] if str(failure) else type(failure).__name__


def _reason(form: Form) -> str:
    """Named constants where there are any: a class may derive some from sizes."""
    theirs = capture(form.on_meta())
    made = buffers(form.on_meta())
    theirs.readers = {name: partial(made.__getitem__, name) for name in made}
    named = differing_constants(form.program, theirs)
    if not named:
        return "its config fixes how the sizes are divided"
    others = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    return f"its class derives a constant from a size that was cut, {named[0]}{others}"
