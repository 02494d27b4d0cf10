"""One reference makes an op: its annotations are the schema, its code the CPU path, its vjp the backward.

    y     = fxcompress::<name>(*inputs)
    grads = fxcompress::<name>_backward(grad, wanted, *inputs)     grads[i] belongs to inputs[wanted[i]]

The backward is an op too, so that a compiler that cannot look into the reference (data decides its control flow, or it
is a loop over the sequence) still sees two nodes with known shapes. It runs the reference again: nothing but the inputs
is kept between forward and backward.
"""

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op, infer_schema

Compute = Callable[..., Tensor]


def define(reference: Compute, fake: Compute, cuda: Compute | None = None, cpu: Compute | None = None) -> CustomOpDef:
    """Define ``fxcompress::<reference.__name__>``.

    ``fake`` returns an empty output of the right shape; ``cuda`` and ``cpu`` compute the op on tensors there instead of
    the reference, forward only.
    """
    name, reference = f"fxcompress::{reference.__name__}", _without_autocast(reference)
    op = custom_op(name, reference, mutates_args=())
    op.register_fake(fake)
    for device, compute in (("cuda", cuda), ("cpu", cpu)):
        if compute is not None:
            op.register_kernel(device, _without_autocast(compute))
    backward = _define_backward(f"{name}_backward", reference)
    op.register_autograd(lambda ctx, grad: _gradients(ctx, grad, backward), setup_context=_save_inputs)
    op.__doc__ = reference.__doc__
    return op


def widest(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: float32, or float64 if any of the tensors has it."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def widen(*tensors: Tensor | None) -> list[Any]:
    """The tensors in the dtype to compute in; absent ones stay absent."""
    dtype = widest(*tensors)
    return [None if t is None else t.to(dtype) for t in tensors]


def _without_autocast(compute: Compute) -> Compute:
    """An op's inputs have the dtypes that the model gave them; autocast would round the op's inside to 16 bits."""

    @wraps(compute)
    def run(*inputs: Any) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return compute(*inputs)

    return run


def _define_backward(name: str, reference: Compute) -> CustomOpDef:
    inputs = infer_schema(reference, mutates_args=()).removeprefix("(").removesuffix(") -> Tensor")
    schema = f"(Tensor grad, int[] wanted, {inputs}) -> Tensor[]"

    def backward(grad: Tensor, wanted: list[int], *inputs: Any) -> list[Tensor]:
        def of_wanted(*values: Tensor) -> Tensor:
            at = dict(zip(wanted, values, strict=True))
            return reference(*(at.get(i, value) for i, value in enumerate(inputs)))

        with _function_transforms():
            vjp = torch.func.vjp(of_wanted, *(inputs[i] for i in wanted))[1]
            return [g.contiguous() for g in vjp(grad)]

    op = custom_op(name, backward, mutates_args=(), schema=schema)
    op.register_fake(lambda grad, wanted, *inputs: [inputs[i].new_empty(inputs[i].shape) for i in wanted])
    return op


def _function_transforms() -> Any:
    """Let ``torch.func`` work within an op also under a dispatch mode (a FLOP counter, say), which switches it off."""
    keys, excluded = torch._C.DispatchKey, torch._C._dispatch_tls_local_exclude_set()
    for key in (keys.FuncTorchDynamicLayerFrontMode, keys.FuncTorchDynamicLayerBackMode, keys.FuncTorchGradWrapper):
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def _save_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]


def _gradients(ctx: Any, grad: Tensor, backward: CustomOpDef) -> tuple[Tensor | None, ...]:
    inputs = [other if x is None else x for x, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
    wanted = [i for i, needs in enumerate(ctx.needs_input_grad) if needs]
    gradient = dict(zip(wanted, backward(grad, wanted, *inputs), strict=True))
    return tuple(gradient.get(i) for i in range(len(inputs)))
