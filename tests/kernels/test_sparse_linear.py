"""Matrices with zeros are held and multiplied by as they are: nothing is lost on the way, and a wrong index shows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass
from torch.utils.flop_counter import FlopCounterMode

from fxcompress import CompressError
from fxcompress.kernels import csr_linear, sparse24_linear
from fxcompress.kernels.csr_linear import reference as csr
from fxcompress.kernels.sparse24_linear import reference as two_of_four
from fxcompress.kernels.sparse24_linear import semi_structured
from fxcompress.rule import RULES

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def with_zeros(rows: int, columns: int, part: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(rows, columns) * (torch.rand(rows, columns) >= part)).to(dtype)


def pruned24(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two of every four, one or none of some."""
    groups = torch.randn(rows, columns // 4, 4)
    groups.scatter_(-1, torch.rand_like(groups).argsort(-1)[..., :2], 0)
    groups[0, 0], groups[-1, -1, 1:] = 0, 0
    return groups.reshape(rows, columns).to(dtype)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from(FLOATS))
def test_a_matrix_comes_back_from_its_rows_bit_for_bit(rows, columns, part, dtype):
    weight = with_zeros(rows, columns, part, dtype)
    crow, col, values = csr.pack(weight)
    assert len(values) == int((weight != 0).sum())
    assert torch.equal(csr.to_dense(crow, col, values, columns), weight)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_matrix_comes_back_from_its_groups_bit_for_bit(dtype):
    weight = pruned24(6, 20, dtype)
    packed, meta = two_of_four.pack(weight)
    assert packed.shape == (6, 10)
    assert torch.equal(two_of_four.to_dense(packed, meta), weight)


@pytest.mark.parametrize("tokens", [(1,), (1, 1), (2,), (3, 7), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_they_multiply_as_the_dense_matrix_does(tokens, bias):
    x, b = torch.randn(*tokens, 24), torch.randn(10) if bias else None
    rows, groups = with_zeros(10, 24, 0.9), pruned24(10, 24)
    torch.testing.assert_close(csr_linear(x, *csr.pack(rows), b), F.linear(x, rows, b))
    torch.testing.assert_close(sparse24_linear(x, *two_of_four.pack(groups), b), F.linear(x, groups, b))


def test_the_kernel_of_the_cpu_gives_what_the_reference_gives():
    crow, col, values = csr.pack(with_zeros(10, 24, 0.9, torch.float64))
    for tokens in (1, 5):
        x, b = torch.randn(tokens, 24, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
        torch.testing.assert_close(
            csr_linear(x, crow, col, values, b), csr.csr_linear(x, crow, col, values, b), rtol=1e-12, atol=1e-12
        )


def test_a_wrong_index_and_a_lost_bias_change_the_result():
    x, b, rows, groups = torch.randn(3, 24), torch.randn(10), with_zeros(10, 24, 0.9), pruned24(10, 24)
    crow, col, values = csr.pack(rows)
    wrong = col.clone()
    wrong[0] = (wrong[0] + 1) % 24
    right = csr_linear(x, crow, col, values, b)
    assert not torch.allclose(csr_linear(x, crow, wrong, values, b), right, atol=1e-3)
    assert not torch.allclose(csr_linear(x, crow, col, values, None), right, atol=1e-3)
    packed, meta = two_of_four.pack(groups)
    right = sparse24_linear(x, packed, meta, b)
    meta[2, 2] = 4 if meta[2, 2] != 4 else 8
    assert not torch.allclose(sparse24_linear(x, packed, meta, b), right, atol=1e-3)
    assert not torch.allclose(sparse24_linear(x, packed, two_of_four.pack(groups)[1], None), right, atol=1e-3)


def test_a_held_weight_gets_the_gradient_of_the_dense_matrix_and_no_other_does():
    x, weight = torch.randn(3, 24), with_zeros(10, 24, 0.9).requires_grad_()
    crow, col, values = csr.pack(weight)
    csr_linear(x, crow, col, values.requires_grad_(), None).square().sum().backward()
    F.linear(x, weight).square().sum().backward()
    rows = torch.arange(10).repeat_interleave(crow.diff())
    torch.testing.assert_close(values.grad, weight.grad[rows, col.long()])


@pytest.mark.parametrize("name", ["csr_linear", "sparse24_linear"])
def test_zeros_count_in_what_they_cost(name):
    """As they do in a dense matrix: a report's figures are told by shapes, and do not change with a kernel."""
    x, weight = torch.randn(3, 24), pruned24(10, 24)
    made = csr.pack(weight) if name == "csr_linear" else two_of_four.pack(weight)
    reference = csr.csr_linear if name == "csr_linear" else two_of_four.sparse24_linear
    with FlopCounterMode(display=False) as counter:
        reference(x, *made, None)
    sizes = {".1": 3, "i": 24, "o": 10, "u": 1, "n": 120, "v": 12, "g": 6}
    used = {k: n for k, n in sizes.items() if k in (".1", "i", "o", *("un" if name == "csr_linear" else "vg"))}
    assert RULES[getattr(torch.ops.fxcompress, name).default].flops(used) == counter.get_total_flops()


def test_parts_that_do_not_belong_together_are_refused_where_shapes_are_told():
    x, index, values = torch.empty(2, 8), torch.empty(5, dtype=torch.int32), torch.empty(6)
    with pytest.raises(RuntimeError, match="6 values and 5 columns of them"):
        csr_linear(*(t.to("meta") for t in (x, index, index, values)), None)
    packed, places = torch.empty(5, 4), torch.empty(4, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="5 rows, places of 4"):
        sparse24_linear(*(t.to("meta") for t in (x, packed, places)), None)


# Layouts of CUDA libraries


def test_the_layout_of_cutlass_is_read_on_the_cpu_as_well():
    weight = pruned24(32, 64, torch.bfloat16)
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert semi_structured.is_native(meta)
    assert torch.equal(semi_structured.to_dense(packed, meta, 64), weight)
    x, b = torch.randn(3, 64, dtype=torch.bfloat16), torch.randn(32, dtype=torch.bfloat16)
    torch.testing.assert_close(sparse24_linear(x, packed, meta, b), F.linear(x, weight, b))


def test_the_layout_of_cusparselt_is_refused_without_cuda():
    x, packed, meta = torch.randn(3, 64), torch.randn(32, 36), torch.empty(32, 0, dtype=torch.int16)
    with pytest.raises(CompressError, match=r"layout of cuSPARSELt, .* move the model back to CUDA"):
        sparse24_linear(x, packed, meta, None)


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((32, 64), torch.bfloat16, ""),
        ((32, 64), torch.float32, "take float16 and bfloat16, not float32"),
        ((48, 64), torch.float16, "multiples of 32 by 64, not 48 by 64"),
        ((64, 96), torch.float16, "multiples of 32 by 64, not 64 by 96"),
    ],
    ids=str,
)
def test_why_a_matrix_has_no_kernel_is_said(shape, dtype, why):
    assert why in semi_structured.why_not(shape, dtype)
    assert bool(why) == bool(semi_structured.why_not(shape, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [(1,), (3, 7), (2, 512)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_kernel_of_cuda_gives_what_the_reference_gives(tokens, dtype):
    weight = pruned24(256, 512, dtype)
    x, b = torch.randn(*tokens, 512, dtype=dtype), torch.randn(256, dtype=dtype)
    packed, meta = semi_structured.pack(weight.cuda())
    assert torch.equal(semi_structured.to_dense(packed, meta, 512).cpu(), weight)
    expected = two_of_four.sparse24_linear(x, *two_of_four.pack(weight), b)
    got = sparse24_linear(x.cuda(), packed, meta, b.cuda())
    torch.testing.assert_close(got.cpu(), expected, rtol=2e-2, atol=2e-1)
    torch.library.opcheck(torch.ops.fxcompress.sparse24_linear.default, (x.cuda(), packed, meta, b.cuda()))


@pytest.mark.gpu
def test_the_gradient_on_cuda_is_that_of_the_dense_matrix():
    weight = pruned24(256, 512, torch.bfloat16).cuda()
    x = torch.randn(3, 512, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    sparse24_linear(x, *semi_structured.pack(weight), None).float().square().sum().backward()
    expected = torch.autograd.grad(F.linear(x, weight).float().square().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=3e-2, atol=1.0)


@pytest.mark.gpu
def test_rows_run_on_cuda_by_the_reference():
    weight, x = with_zeros(64, 48, 0.9), torch.randn(5, 48)
    got = csr_linear(x.cuda(), *csr.pack(weight.cuda()), None)
    torch.testing.assert_close(got.cpu(), F.linear(x, weight))
