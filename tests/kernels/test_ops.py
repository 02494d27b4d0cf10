"""What holds for every op of the dialect."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fxcompress.kernels as kernels
from fxcompress.einop import parse
from fxcompress.kernels.attention import reference as attention_reference
from fxcompress.rule import RULES

INF = float("inf")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def ssd_scan(f: Callable[..., Tensor]) -> tuple:
    A = -f(4).abs() - 0.1
    return f(2, 7, 4, 3), f(2, 7, 4), A, f(2, 7, 2, 5), f(2, 7, 2, 5), f(4), f(4), 4, True, 0.0, INF


def selective_scan(f: Callable[..., Tensor]) -> tuple:
    A = -f(4, 3).abs() - 0.1
    return f(2, 4, 7), f(2, 4, 7), A, f(2, 3, 7), f(2, 3, 7), f(4), f(2, 4, 7), f(4), True


def causal_conv1d(f: Callable[..., Tensor]) -> tuple:
    return f(2, 5, 7), f(5, 4), f(5), "silu"


def attention(f: Callable[..., Tensor]) -> tuple:
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    return f(2, 4, 5, 4), f(2, 2, 7, 4), f(2, 2, 7, 6), mask, 0.5, True, 4, 0.0


def experts(f: Callable[..., Tensor]) -> tuple:
    index = torch.rand(7, 4).topk(2).indices
    return f(7, 6), index, f(7, 2), f(4, 10, 6), f(4, 3, 5), f(4, 10), f(4, 3), True, "silu"


OPS: dict[str, Callable] = {f.__name__: f for f in (attention, causal_conv1d, experts, selective_scan, ssd_scan)}
every_op = pytest.mark.parametrize("name", OPS)


def sample(name: str, dtype: torch.dtype = torch.float64) -> tuple:
    return OPS[name](lambda *shape: torch.randn(shape, dtype=dtype))


def each(inputs: tuple, change: Callable[[Tensor], Tensor]) -> tuple:
    """The inputs, every floating-point tensor changed."""
    return tuple(change(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def scattered(inputs: tuple) -> tuple:
    """The inputs with other strides."""
    return each(inputs, lambda x: x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2])


def trainable(name: str, dtype: torch.dtype = torch.float64) -> tuple:
    return each(sample(name, dtype), lambda x: x.detach().requires_grad_())


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.fxcompress, name).default


def without_options(name: str, inputs: tuple) -> tuple:
    """The inputs, every optional tensor absent."""
    arguments = overload(name)._schema.arguments
    return tuple(None if str(a.type) == "Optional[Tensor]" else x for a, x in zip(arguments, inputs, strict=True))


def test_all_are_tested():
    assert sorted(OPS) == sorted(kernels.__all__)


@every_op
def test_the_registration_is_sound(name: str):
    for inputs in (trainable(name), without_options(name, trainable(name))):
        torch.library.opcheck(overload(name), inputs)


@every_op
def test_the_gradients_are_those_of_finite_differences(name: str):
    assert torch.autograd.gradcheck(getattr(kernels, name), trainable(name))


@every_op
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_output_has_the_inputs_dtype_and_was_computed_in_float32_or_better(name: str, dtype: torch.dtype):
    inputs = sample(name, dtype)
    y, exact = getattr(kernels, name)(*inputs), getattr(kernels, name)(*each(inputs, Tensor.double))
    assert y.dtype == dtype
    rounding = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=rounding)


@every_op
def test_gradients_have_the_dtypes_of_their_inputs(name: str):
    inputs = trainable(name, torch.bfloat16)
    getattr(kernels, name)(*inputs).float().sum().backward()
    assert {x.grad.dtype for x in inputs if isinstance(x, Tensor) and x.requires_grad} == {torch.bfloat16}


@every_op
def test_autocast_does_not_reach_inside(name: str):
    inputs = sample(name, torch.float32)
    y = getattr(kernels, name)(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert getattr(kernels, name)(*inputs).equal(y)


@every_op
def test_strides_do_not_matter(name: str):
    inputs = sample(name)
    y = getattr(kernels, name)(*scattered(inputs))
    assert y.is_contiguous()
    torch.testing.assert_close(y, getattr(kernels, name)(*inputs))


@every_op
def test_gradients_are_contiguous_as_the_compiler_was_told(name: str):
    inputs = scattered(sample(name))
    wanted = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    backward = getattr(torch.ops.fxcompress, f"{name}_backward").default
    grad = torch.ones_like(getattr(kernels, name)(*inputs)).mT.contiguous().mT
    torch.library.opcheck(backward, (grad, wanted, *inputs), test_utils=("test_schema", "test_faketensor"))


@every_op
def test_meta_tensors_give_the_shape_alone(name: str):
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
def test_the_gradients_of_frozen_inputs_are_not_computed(name: str):
    x, *frozen = sample(name)
    with Watch() as watch:
        getattr(kernels, name)(x.requires_grad_(), *frozen).sum().backward()
    assert watch.wanted == [[0]]


@every_op
def test_a_second_derivative_is_refused(name: str):
    inputs = trainable(name)
    (first,) = torch.autograd.grad(getattr(kernels, name)(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


# under compilation and export


def test_they_compile_without_a_graph_break_with_their_gradients():
    inputs = {name: trainable(name, torch.float32) for name in OPS}

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
def test_each_is_one_node_of_an_export_for_every_batch_and_length(name: str):
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
def test_an_unknown_activation_is_an_error_that_names_the_known_ones(name: str, device: str):
    *inputs, _ = (x.to(device) if isinstance(x, Tensor) else x for x in sample(name))
    with pytest.raises(ValueError, match=r"'sinus'; known are silu, .*relu2"):
        getattr(kernels, name)(*inputs, "sinus")


def test_importing_them_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import fxcompress.kernels"
    subprocess.run([sys.executable, "-c", code], check=True)


# what their rules say


def sizes_by_letter(operands: list[list], inputs: list[Tensor]) -> dict[str, int]:
    dims = [dim for terms, x in zip(operands, inputs, strict=True) for dim in zip(terms, x.shape, strict=True)]
    sizes = {term: n for term, n in dims if isinstance(term, str)}
    for (_, letters), n in (dim for dim in dims if not isinstance(dim[0], str)):
        unknown = [letter for letter in letters if letter not in sizes]
        if unknown:
            sizes[unknown[0]] = n // math.prod(sizes[letter] for letter in letters if letter in sizes)
    return sizes


def indices(term: Any, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    """Where in a dim the kept indices of one of its letters are."""
    letters = [term] if isinstance(term, str) else term[1]
    grid = torch.arange(math.prod(sizes[x] for x in letters)).view([sizes[x] for x in letters])
    return grid.index_select(letters.index(letter), keep).flatten()


def cut(x: Tensor, terms: list, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    for dim, term in enumerate(terms):
        if letter in (term if isinstance(term, str) else term[1]):
            x = x.index_select(dim, indices(term, letter, keep, sizes))
    return x


def zero_the_rest(x: Tensor, terms: list, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    for dim, term in enumerate(terms):
        if letter in (term if isinstance(term, str) else term[1]):
            kept = torch.zeros(x.shape[dim]).index_fill(0, indices(term, letter, keep, sizes), 1)
            x = x * kept.view([-1] + [1] * (x.dim() - dim - 1)).to(x.dtype)
    return x


ROLES = [
    (name, letter)
    for name in OPS
    for letter in (RULES[overload(name)].einop.roles)
    if letter not in RULES[overload(name)].einop.pins
]


@pytest.mark.parametrize(("name", "letter"), ROLES)
def test_cutting_an_axis_is_dropping_it_from_the_output_or_zeroing_what_it_contracts(name: str, letter: str):
    inputs, (left, right) = sample(name), parse(RULES[overload(name)].einop.spec)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    sizes = sizes_by_letter(left, tensors)
    keep = torch.arange(sizes[letter])[1:]

    def changed(change: Callable[..., Tensor]) -> Tensor:
        operands = iter([change(x, terms, letter, keep, sizes) for x, terms in zip(tensors, left, strict=True)])
        return getattr(kernels, name)(*(next(operands) if isinstance(x, Tensor) else x for x in inputs))

    in_output = any(letter in (term if isinstance(term, str) else term[1]) for term in right)
    expected = cut(getattr(kernels, name)(*inputs), right, letter, keep, sizes) if in_output else changed(zero_the_rest)
    torch.testing.assert_close(changed(cut), expected, rtol=0, atol=1e-12)


def test_what_data_decides_is_pinned():
    assert RULES[overload("experts")].einop.pins["e"] == "experts are addressed by the router's choice, which is data"
    assert set(RULES[overload("experts")].einop.pins) == {"e", "j", "m"}
    assert RULES[overload("causal_conv1d")].einop.pins == {"w": "kernel positions"}


def sizes_of(name: str) -> dict[str, int]:
    tensors = [x for x in sample(name) if isinstance(x, Tensor)]
    return sizes_by_letter(parse(RULES[overload(name)].einop.spec)[0], tensors)


@pytest.mark.parametrize("name", ["attention", "causal_conv1d", "experts"])
def test_their_flops_are_what_the_reference_spends_in_multiplications(name: str):
    reference = {
        "attention": attention_reference.attention,
        "causal_conv1d": kernels.causal_conv1d._init_fn,
        "experts": kernels.experts._init_fn,
    }[name]
    with FlopCounterMode(display=False) as counter:
        reference(*sample(name))
    assert RULES[overload(name)].flops(sizes_of(name)) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "flops"), [("ssd_scan", 6 * 2 * 7 * 4 * 3 * 5), ("selective_scan", 6 * 2 * 4 * 7 * 3)], ids=str
)
def test_the_flops_of_a_scan_are_three_multiplications_a_state_and_token(name: str, flops: int):
    assert RULES[overload(name)].flops(sizes_of(name)) == flops


@pytest.mark.parametrize(
    ("name", "per_token", "per_sequence"),
    [
        ("attention", 2 * (4 + 6), 0),
        ("ssd_scan", 0, 4 * 3 * 5),
        ("selective_scan", 0, 4 * 3),
        ("causal_conv1d", 0, 5 * 3),
    ],
)
def test_what_they_keep_for_generation(name: str, per_token: int, per_sequence: int):
    assert RULES[overload(name)].cache(sizes_of(name)) == (per_token, per_sequence)
