import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as with_softcap
from transformers.models.llama.modeling_llama import eager_attention_forward as without_softcap

from fxcompress.kernels import attention
from fxcompress.kernels.attention import fused, reference


def pair_by_pair(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Tensor:
    """One query and one key at a time, as the equation stands."""
    (b, heads, t, _), (_, kv, s, _) = q.shape, k.shape
    y = []
    for n, h, i in ((n, h, i) for n in range(b) for h in range(heads) for i in range(t)):
        total, weighted, position = 0.0, torch.zeros_like(v[0, 0, 0]), i + s - t
        for j in range(s):
            hidden = (causal and j > position) or (window and position - j >= window)
            if hidden or (mask is not None and not mask[n, j]):
                continue
            score = scale * q[n, h, i].dot(k[n, h * kv // heads, j])
            score = softcap * torch.tanh(score / softcap) if softcap else score
            total, weighted = total + score.exp(), weighted + score.exp() * v[n, h * kv // heads, j]
        y.append(weighted / total if isinstance(total, Tensor) else weighted)
    return torch.stack(y).view(b, heads, t, -1)


@dataclass(frozen=True)
class Shape:
    b: int = 2
    k: int = 2
    r: int = 2
    t: int = 5
    s: int = 5
    d: int = 4
    e: int = 4


def sample(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    b, k, r, t, s, d, e = astuple(shape)
    return (
        torch.randn(b, k * r, t, d, dtype=dtype),
        torch.randn(b, k, s, d, dtype=dtype),
        torch.randn(b, k, s, e, dtype=dtype),
    )


LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
ALL_MASKED = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)

CASES = {
    "every key": (Shape(), None, False, 0, 0.0),
    "causal": (Shape(), None, True, 0, 0.0),
    "queries at the end of the keys": (Shape(t=2), None, True, 0, 0.0),
    "one query": (Shape(t=1), None, True, 0, 0.0),
    "more queries than keys": (Shape(t=5, s=3), None, True, 0, 0.0),
    "one query, one key": (Shape(t=1, s=1), None, True, 0, 0.0),
    "window": (Shape(), None, True, 2, 0.0),
    "window of one": (Shape(t=3), None, True, 1, 0.0),
    "window without causality": (Shape(), None, False, 2, 0.0),
    "softcap": (Shape(), None, True, 0, 1.5),
    "left padding": (Shape(), LEFT_PADDED, True, 0, 0.0),
    "left padding, window, softcap": (Shape(t=4), LEFT_PADDED, True, 3, 1.5),
    "nothing visible": (Shape(), ALL_MASKED, False, 0, 0.0),
    "one key head": (Shape(k=1, r=4), LEFT_PADDED, True, 0, 0.0),
    "one query head a key head": (Shape(k=4, r=1), LEFT_PADDED, True, 0, 0.0),
    "values of another width": (Shape(d=3, e=5), LEFT_PADDED, True, 0, 0.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_softmax_over_visible_pairs(case: tuple, assert_same: Callable):
    shape, mask, causal, window, softcap = case
    assert_same(attention, pair_by_pair, (*sample(shape), mask, 0.7, causal, window, softcap), 1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_fused_path_is_the_reference(case: tuple, assert_same: Callable):
    shape, mask, causal, window, softcap = case
    arguments = (*sample(shape, torch.float32), mask, 0.7, causal, window, softcap)
    assert_same(fused.attention, reference.attention, arguments, 1e-5)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("window", [0, 3])
def test_it_is_what_transformers_computes(softcap: float, window: int, assert_same: Callable):
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    sees = sliding_window_causal_mask_function(window) if window else causal_mask_function
    i, j = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    seen = sees(0, 0, i, j) & LEFT_PADDED[:, None, None]
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"scaling": 0.7, **({"softcap": softcap} if softcap else {})}
        y, _ = (with_softcap if softcap else without_softcap)(module, q, k, v, additive, **options)
        return y[LEFT_PADDED]  # real tokens only: where no key is visible, theirs averages over all

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, LEFT_PADDED, 0.7, True, window, softcap).transpose(1, 2)[LEFT_PADDED]

    assert_same(ours, theirs, sample(Shape(), torch.float32), 1e-5)


@pytest.mark.parametrize("function", [fused.attention, reference.attention], ids=["fused", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_query_that_sees_no_key_gives_zero_and_passes_no_gradient(function: Callable, dtype: torch.dtype):
    q, k, v = (x.requires_grad_() for x in sample(Shape(), dtype))
    y = function(q, k, v, LEFT_PADDED, 1e4, True, 0, 0.0)
    y.sum().backward()
    assert not y[0, :, :2].any()
    for gradient in (q.grad[0, :, :2], k.grad[0, :, :2], v.grad[0, :, :2]):
        assert not gradient.any()
    for tensor in (y, q.grad, k.grad, v.grad):
        assert tensor.isfinite().all()


def test_left_padding_changes_nothing_for_what_follows():
    q, k, v = sample(Shape(b=1))
    padded = attention(q, k, v, LEFT_PADDED[:1], 0.7, True, 0, 0.0)
    alone = attention(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:], None, 0.7, True, 0, 0.0)
    torch.testing.assert_close(padded[:, :, 2:], alone, rtol=0, atol=1e-12)


def test_large_scores_do_not_overflow():
    q, k, v = sample(Shape(), torch.float32)
    y = attention(q, k, v, None, 1e30, True, 0, 0.0)
    assert y.isfinite().all()


@pytest.mark.parametrize("function", [attention, reference.attention], ids=["op", "reference"])
def test_a_long_sequence_with_a_mask_keeps_the_precision_of_its_dtype(function: Callable):
    q, k, v = sample(Shape(b=1, t=300, s=300, d=16, e=16), torch.bfloat16)
    mask = torch.arange(300)[None] >= 3
    scale = 1 / math.sqrt(16)
    exact = reference.attention(q.double(), k.double(), v.double(), mask, scale, True, 0, 0.0)
    y = function(q, k, v, mask, scale, True, 0, 0.0)
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7)
