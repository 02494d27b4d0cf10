"""The model that is trained: a copy in float32, made from whatever was given and turned back into it.

    given ──▶ module, in float32 ──training──▶ given's kind, in given's dtypes

An update of a learning rate of 1e-4 is below the spacing of bfloat16 around most weights: they would never move. What
is given is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fxcompress.bounded import quoted
from fxcompress.compressed import CompressedModel, open_model
from fxcompress.errors import CompressError
from fxcompress.export.choose import choose
from fxcompress.program import Program
from fxcompress.report import Report


@dataclass(frozen=True)
class Student:
    """``module`` is trained. ``compressed``: what its weights go back to, by ``names`` (module -> program); None for a
    model of transformers that is not to be written. graph_alone: why no model of transformers is trained."""

    module: nn.Module
    given: Any
    dtypes: Mapping[str, torch.dtype]
    compressed: CompressedModel | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    graph_alone: str = ""

    @classmethod
    def of(cls, given: Any, to_be_saved: bool = False) -> Student:
        """A model of transformers, a ``CompressedModel``, or the directory or hub id of either.

        Raises CompressError for what is none of those, or has no values.
        """
        if isinstance(given, nn.Module) and any(p.is_meta for p in given.parameters()):
            raise CompressError("the student is on meta and has no values to train")
        if isinstance(given, PreTrainedModel) and not to_be_saved:
            module = copy.deepcopy(given)
            dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
            return cls(_widened(module), given, dtypes)
        compressed = compressed_of(given)
        program = compressed.program
        dtypes = {name: tensor.dtype for name, tensor in program.state.items()}
        choice = choose(program, compressed.steps)
        if choice.form is None:
            names = {f"graph_module.{name}": name for name in program.used_names()}
            return cls(_graph(compressed), given, dtypes, compressed, names, choice.why)
        return cls(_widened(choice.form.loaded()), given, dtypes, compressed, choice.form.names)

    @property
    def sparse(self) -> dict[str, str]:
        """Declared patterns of zeros, by the module's names."""
        if self.compressed is None:
            return {}
        patterns = self.compressed.program.sparse
        return {mine: patterns[name] for mine, name in self.names.items() if name in patterns}

    def result(self, note: Mapping[str, Any]) -> CompressedModel | None:
        """The trained weights in the program that they came from, ``note`` in its report."""
        if self.compressed is None:
            return None
        report = Report.from_json(self.compressed.report.to_json())
        report.notes |= {"distillation": dict(note)}
        return CompressedModel(self._program(self.compressed.program), self.compressed.steps, report)

    def model(self) -> PreTrainedModel:
        """The trained model of transformers, in the dtypes that were given."""
        assert isinstance(self.module, PreTrainedModel)
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            tensor.data = tensor.data.to(self.dtypes.get(self.names.get(name, name), tensor.dtype))
        self.module.config.dtype = self.module.dtype
        return self.module.cpu().eval()

    def _program(self, program: Program) -> Program:
        state = self.module.state_dict(keep_vars=True)
        values = {name: state[mine].detach() for mine, name in self.names.items() if mine in state}
        new = program.map_state(lambda name, old: values[name].to("cpu", self.dtypes[name]) if name in values else old)
        new.readers = {name: reader for name, reader in program.readers.items() if name not in values}
        return new.loaded()


def compressed_of(given: Any, which: str = "the student") -> CompressedModel:
    """What is given as a result, with nothing done to it where it was none."""
    if isinstance(given, CompressedModel):
        return given
    if not isinstance(given, PreTrainedModel | str | Path):
        raise CompressError(
            f"{which} is {quoted(type(given).__name__)}: give a model of transformers, a result of fxcompress, or"
            " the directory of one"
        )
    opened = open_model(given, None)
    return CompressedModel(opened.program, opened.steps, opened.report)


def _widened(module: Any) -> Any:
    """In float32 where it is narrower, with tensors of its own; ties stay ties."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dtype = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(dtype, copy=True)
    return module


def _graph(compressed: CompressedModel) -> CompressedModel:
    program = compressed.program.widened().loaded().map_state(lambda _, t: t.clone())
    return CompressedModel(program, compressed.steps, compressed.report)
