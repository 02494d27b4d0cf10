"""All that differs between the supported versions of torch (2.11 to 2.13) and transformers (5.17 to 5.23)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def export(wrapper: nn.Module, inputs: tuple, dynamic_shapes: Any) -> torch.export.ExportedProgram:
    """Trace into the training IR. Non-strict: the model's own Python runs, so data structures need no support."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(wrapper, inputs, dynamic_shapes=dynamic_shapes, strict=False)


def unlift(exported: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The graph with parameters as attributes, without the guards on the sizes seen at capture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exported.module(check_guards=False)
