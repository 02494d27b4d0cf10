"""What holds for every op of the dialect."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxcompress import kernels
from fxcompress.einop import parse
from fxcompress.rule import RULES

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

every_op = pytest.mark.parametrize("name", kernels.__all__)


def each(inputs: tuple, change: Callable[[Tensor], Tensor]) -> tuple:
    """The inputs, every floating-point tensor changed."""
    return tuple(change(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def scattered(inputs: tuple) -> tuple:
    """The inputs with other strides."""
    return each(inputs, lambda x: x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2])


def trainable(inputs: tuple) -> tuple:
    return each(inputs, lambda x: x.detach().requires_grad_())


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.fxcompress, name).default


def without_options(name: str, inputs: tuple) -> tuple:
    """The inputs, every optional tensor absent."""
    arguments = overload(name)._schema.arguments
    return tuple(None if str(a.type) == "Optional[Tensor]" else x for a, x in zip(arguments, inputs, strict=True))


@every_op
def test_the_registration_is_sound(sample: Callable, name: str):
    for inputs in (trainable(sample(name)), without_options(name, trainable(sample(name)))):
        torch.library.opcheck(overload(name), inputs)


@every_op
def test_the_gradients_are_those_of_finite_differences(sample: Callable, name: str):
    assert torch.autograd.gradcheck(getattr(kernels, name), trainable(sample(name)))


@every_op
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_output_has_the_inputs_dtype_and_was_computed_in_float32_or_better(
    sample: Callable, name: str, dtype: torch.dtype
):
    inputs = sample(name, dtype)
    y, exact = getattr(kernels, name)(*inputs), getattr(kernels, name)(*each(inputs, Tensor.double))
    assert y.dtype == dtype
    rounding = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=rounding)


@every_op
def test_gradients_have_the_dtypes_of_their_inputs(sample: Callable, name: str):
    inputs = trainable(sample(name, torch.bfloat16))
    getattr(kernels, name)(*inputs).float().sum().backward()
    assert {x.grad.dtype for x in inputs if isinstance(x, Tensor) and x.requires_grad} == {torch.bfloat16}


@every_op
def test_autocast_does_not_reach_inside(sample: Callable, name: str):
    inputs = sample(name, torch.float32)
    y = getattr(kernels, name)(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(kernels, name)(*inputs).equal(y)


@every_op
def test_strides_do_not_matter(sample: Callable, name: str):
    inputs = sample(name)
    y = getattr(kernels, name)(*scattered(inputs))
    assert y.is_contiguous()
    torch.testing.assert_close(y, getattr(kernels, name)(*inputs))


@every_op
def test_gradients_are_contiguous_as_the_compiler_was_told(sample: Callable, name: str):
    inputs = scattered(sample(name))
    wanted = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    backward = getattr(torch.ops.fxcompress, f"{name}_backward").default
    grad = torch.ones_like(getattr(kernels, name)(*inputs)).mT.contiguous().mT
    torch.library.opcheck(backward, (grad, wanted, *inputs), test_utils=("test_schema", "test_faketensor"))


@every_op
def test_meta_tensors_give_the_shape_alone(sample: Callable, name: str):
    inputs = sample(name)
    y = getattr(kernels, name)(*(x.to("meta") if isinstance(x, Tensor) else x for x in inputs))
    assert y.is_meta
    assert y.shape == getattr(kernels, name)(*inputs).shape


class Watch(TorchDispatchMode):
    """Records what is asked of the backward ops."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if str(func).endswith("_backward.default") and func.namespace == "fxcompress":
            self.wanted.append(args[1])
        return func(*args, **(kwargs or {}))


@every_op
def test_the_gradients_of_frozen_inputs_are_not_computed(sample: Callable, name: str):
    x, *frozen = sample(name)
    with Watch() as watch:
        getattr(kernels, name)(x.requires_grad_(), *frozen).sum().backward()
    assert watch.wanted == [[0]]


@every_op
def test_a_second_derivative_is_refused(sample: Callable, name: str):
    inputs = trainable(sample(name))
    (first,) = torch.autograd.grad(getattr(kernels, name)(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


# under compilation and export


def test_they_compile_without_a_graph_break_with_their_gradients(sample: Callable):
    inputs = {name: trainable(sample(name, torch.float32)) for name in kernels.__all__}

    def all_ops(inputs: dict[str, tuple]) -> list[Tensor]:
        return [getattr(kernels, name)(*x) for name, x in inputs.items()]

    eager = all_ops(inputs)
    leaves = [x for args in inputs.values() for x in args if isinstance(x, Tensor) and x.requires_grad]
    expected = torch.autograd.grad(sum(y.square().sum() for y in eager), leaves)
    compiled = torch.compile(all_ops, fullgraph=True)(inputs)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(sum(y.square().sum() for y in compiled), leaves), expected)


class OneOp(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.op = getattr(kernels, name)

    def forward(self, *inputs: Any) -> Tensor:
        return self.op(*inputs)


def runtime_dims(name: str, inputs: tuple) -> tuple:
    """Batch and lengths dynamic, by the letters of the op's rule."""
    operands = iter(parse(RULES[overload(name)].einop.spec)[0])
    dynamic = torch.export.Dim.DYNAMIC
    return tuple(
        {i: dynamic for i, term in enumerate(next(operands)) if term in ("b", "l", "t", "s")}
        if isinstance(x, Tensor)
        else None
        for x in inputs
    )


@every_op
def test_each_is_one_node_of_an_export_for_every_batch_and_length(sample: Callable, name: str):
    inputs = sample(name)
    program = torch.export.export(OneOp(name), inputs, dynamic_shapes=(runtime_dims(name, inputs),), strict=False)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [overload(name)]
    dims = runtime_dims(name, inputs)
    longer = tuple(
        x.repeat([2 if i in d else 1 for i in range(x.dim())]) if d is not None else x
        for x, d in zip(inputs, dims, strict=True)
    )
    torch.testing.assert_close(program.module(check_guards=False)(*longer), getattr(kernels, name)(*longer))


@pytest.mark.parametrize("name", ["causal_conv1d", "experts"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_unknown_activation_is_an_error_that_names_the_known_ones(sample: Callable, name: str, device: str):
    *inputs, _ = (x.to(device) if isinstance(x, Tensor) else x for x in sample(name))
    with pytest.raises(ValueError, match=r"'sinus'; known are silu, .*relu2"):
        getattr(kernels, name)(*inputs, "sinus")


def test_importing_them_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import fxcompress.kernels"
    subprocess.run([sys.executable, "-c", code], check=True)
