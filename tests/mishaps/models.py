"""Models in memory that are not as they come: values, dtypes, devices, ties, flags."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress
from tests import models
from tests.mishaps.files import UP
from tests.mishaps.place import HALVED, RESULT, Mishap, Place, module

DOWN = "model.layers.0.mlp.down_proj.weight"


def given(change: Callable[[Any], Any], **fields: Any) -> Callable[[Place], object]:
    """Apply a pass to a model after a change to it, save what comes out, and see that the model is as it was."""

    def ask(place: Place) -> None:
        model = module(**fields)
        changed = change(model)
        model = model if changed is None else changed
        before, flags = _values(model), _flags(model)
        try:
            small = fxcompress.apply(model, [HALVED])
        finally:
            assert _flags(model) == flags, "the model's flags were changed"
            assert _values(model) == before, "the model's values were changed"
        _require_flags_kept(model, small)
        small.save_pretrained(place.out)
        assert fxcompress.load(place.out)(input_ids=models.ids(1, 9)).logits.isfinite().all()

    return ask


def _values(model: Any) -> list[bytes]:
    state = model.state_dict().values() if isinstance(model, nn.Module) else ()
    tensors = [value.contiguous().view(-1) for value in state if isinstance(value, Tensor) and not value.is_meta]
    return [tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors]


def _flags(model: Any) -> list[tuple[str, bool]]:
    if not isinstance(model, nn.Module):
        return []
    frozen = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    return frozen + [(name, part.training) for name, part in model.named_modules()]


def _require_flags_kept(model: nn.Module, small: Any) -> None:
    """What was frozen stays frozen, and nothing else is."""
    kept = dict(small.program.parameters())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in kept.items() if not parameter.requires_grad} == frozen & kept.keys()


def set_values(*values: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        with torch.no_grad():
            model.get_parameter(UP).view(-1)[: len(values)] = torch.tensor(values)

    return change


def replace(name: str, make: Callable[[torch.Tensor], torch.Tensor], grad: bool = False) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        path, _, leaf = name.rpartition(".")
        value = nn.Parameter(make(model.get_parameter(name).detach()), requires_grad=grad)
        setattr(model.get_submodule(path), leaf, value)

    return change


def freeze(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" not in name)


def tie_across_kinds(model: Any) -> None:
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight = layer.self_attn.q_proj.weight


def tie_norms(model: Any) -> None:
    model.model.norm.weight = model.model.layers[0].input_layernorm.weight


def share_memory(model: Any) -> None:
    """Two parameters over one storage, which no name says."""
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight = nn.Parameter(mlp.up_proj.weight.detach().view(80, 48))


def in_training(model: Any) -> None:
    model.train()


def partly_in_training(model: Any) -> None:
    model.train()
    model.model.layers[0].mlp.eval()


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0.5)


def watched(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: None)


def under_no_grad(model: Any) -> None:
    model.requires_grad_(False)


def instead(value: object) -> Callable[[Any], object]:
    return lambda model: value


case = partial(Mishap, "models", ends="CompressError")
works = partial(Mishap, "models", ends="done", left=RESULT)

MISHAPS = (
    case(
        "a weight with NaN and Inf",
        f"{UP} (80, 48) holds 2 values that are NaN or Inf",
        ask=given(set_values(torch.nan, torch.inf)),
    ),
    case(
        "dynamically quantised",
        "LlamaForCausalLM cannot be captured",
        ask=given(lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear})),
        ends="CaptureError",
    ),
    case(
        "a weight of int8",
        "with weights in float32, int8, does not run",
        ask=given(replace(UP, lambda t: t.mul(10).to(torch.int8))),
        ends="CaptureError",
    ),
    case(
        "a weight of float8",
        "with weights in float32, float8_e4m3fn, does not run",
        ask=given(replace(UP, lambda t: t.to(torch.float8_e4m3fn))),
        ends="CaptureError",
    ),
    case(
        "a weight of complex numbers",
        "with weights in complex64, float32, does not run",
        ask=given(replace(UP, lambda t: t.to(torch.complex64))),
        ends="CaptureError",
    ),
    case(
        "a weight in another dtype than the rest",
        "with weights in bfloat16, float32, does not run",
        ask=given(replace(UP, lambda t: t.bfloat16())),
        ends="CaptureError",
    ),
    case(
        "a weight on meta, the rest loaded",
        f"{UP} on meta: load all of it on one device",
        ask=given(replace(UP, lambda t: t.to("meta"))),
        ends="CaptureError",
    ),
    case(
        "half the layers on meta",
        "on meta: load all of it on one device",
        ask=given(lambda m: m.model.layers.to("meta") and None),
        ends="CaptureError",
    ),
    case(
        "a weight of another shape",
        "cannot be captured in module 'model.layers.0.mlp.down_proj': a and b must have same reduction dim",
        ask=given(replace(DOWN, lambda t: t[:, :70].clone())),
        ends="CaptureError",
    ),
    works("in bfloat16", ask=given(lambda m: m.bfloat16())),
    works("in float16", ask=given(lambda m: m.half())),
    works("in float64", ask=given(lambda m: m.double())),
    works("in training mode", ask=given(in_training)),
    works("partly in training mode", ask=given(partly_in_training)),
    works("some parameters frozen", ask=given(freeze)),
    works("all parameters frozen", ask=given(under_no_grad)),
    works("one weight for query and output", ask=given(tie_across_kinds)),
    works("one weight for all norms", ask=given(tie_norms)),
    works("two weights over the same memory", ask=given(share_memory)),
    works("a weight that is not contiguous", ask=given(replace(UP, lambda t: t.t().contiguous().t(), grad=True))),
    works("a hook that only watches", ask=given(watched)),
    works("untied embeddings", ask=given(lambda m: None, tie_word_embeddings=False)),
    case(
        "a hook that changes what a layer gives",
        "model.layers.0.mlp was captured with forward hooks, which change what it gives",
        ask=given(hooked),
    ),
    case(
        "wrapped by torch.compile",
        "OptimizedModule wraps a LlamaForCausalLM: pass that",
        ask=given(torch.compile),
        ends="CaptureError",
    ),
    case(
        "wrapped for several devices",
        "DataParallel wraps a LlamaForCausalLM: pass that",
        ask=given(nn.DataParallel),
        ends="CaptureError",
    ),
    case(
        "a class instead of a model",
        "is no model: pass a torch.nn.Module",
        ask=given(instead(nn.Linear)),
        ends="CaptureError",
    ),
    case(
        "a number instead of a model",
        "42 is no model: pass a torch.nn.Module",
        ask=given(instead(42)),
        ends="CaptureError",
    ),
    case(
        "a plain module without inputs",
        "is a plain module: pass example_inputs",
        ask=given(instead(nn.Linear(3, 4))),
        ends="CaptureError",
    ),
)
