"""All that differs between the supported versions of torch (2.11 to 2.13) and transformers (5.17 to 5.23)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import build_glob_alternation
from transformers.modeling_utils import _load_parameter_into_model


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


def initialise_buffers(model: Any, device: torch.device) -> None:
    """Give the buffers of a model on ``meta`` that no checkpoint holds their values, and nothing else.

    What ``from_pretrained`` does after it has read all weights; its steps have no public name.
    """
    for name, buffer in model.named_non_persistent_buffers():
        _load_parameter_into_model(model, name, torch.empty_like(buffer, device=device))
    for name in model.state_dict():
        model.get_parameter_or_buffer(name)._is_hf_initialized = True
    model._initialize_missing_keys(is_quantized=False)


def checkpoint_activations(model: Any) -> None:
    """Let a model's layers keep their inputs alone, and compute the rest again in the backward pass."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name of newer versions
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def widen_float32_parts(model: Any, dtype: torch.dtype) -> None:
    """Tensors that a class wants in float32 whatever the dtype of the rest, as ``from_pretrained`` gives them."""
    wanted = model._get_dtype_plan(dtype)
    if not wanted:
        return
    pattern, by_group, _ = build_glob_alternation(list(wanted))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (found := pattern.search(name)) is not None:
            tensor.data = tensor.data.to(wanted[by_group[str(found.lastgroup)]])
