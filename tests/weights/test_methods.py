"""Methods by name: what they return, in which order they lose, what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxcompress.errors import CompressError
from fxcompress.weights import METHODS, NM, Gram, Pattern, Unstructured, relative_loss
from fxcompress.weights import compensation as closed
from tests.weights.problems import inputs, problem

PATTERNS = [Unstructured(0.5, "row"), Unstructured(0.4), NM(2, 4)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_dtype_given_and_exact_zeros(name: str, pattern: Pattern, dtype: torch.dtype):
    weight, gram = problem(6, 32)[0].to(dtype), Gram.of(inputs(32).float())
    found = METHODS[name](weight, gram, pattern)
    assert found.weight.dtype == dtype
    assert torch.count_nonzero(found.weight[~found.mask]) == 0
    assert found.sparsity == pytest.approx(round(pattern.sparsity * 6 * 32) / (6 * 32), abs=0.03)
    assert found.loss == pytest.approx(relative_loss(weight.double(), found.weight, gram), rel=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_loss_falls_from_baseline_to_method(pattern: Pattern):
    """No law for one problem: over ten, as the papers report it."""
    total = dict.fromkeys(METHODS, 0.0)
    for seed in range(10):
        weight, gram = problem(8, 32, seed)
        for name, method in METHODS.items():
            total[name] += method(weight, gram, pattern).loss
    assert total["magnitude"] > total["wanda"] > total["sparsegpt"] > total["mrp"] > total["alps"]


@pytest.mark.parametrize("options", [{}, {"sweep": False}, {"shares": "even"}, {"block": 4}], ids=str)
def test_no_other_weights_under_the_mask_of_mrp_lose_less(options: dict):
    weight, gram = problem(8, 32)
    found = METHODS["mrp"](weight, gram, Unstructured(0.5, "row"), **options)
    D = gram.damped(found.damping)
    gradient = ((found.weight - weight) @ D.matrix)[found.mask]
    assert gradient.abs().max() < 1e-8 * (weight @ D.matrix).abs().max()


def test_pairs_of_rules_are_methods_of_their_own():
    weight, gram = problem(8, 32)
    pairs = itertools.product("SM", "SM")
    losses = {
        mask + rule: METHODS["mrp"](weight, gram, NM(2, 4), mask=mask, compensation=rule).loss for mask, rule in pairs
    }
    assert len(set(losses.values())) == 4
    assert max(losses["SM"], losses["MM"]) < min(losses["SS"], losses["MS"])


def test_single_rules_with_even_shares_are_sparsegpt():
    weight, gram = problem(8, 32)
    mrp = METHODS["mrp"](weight, gram, Unstructured(0.5, "row"), compensation="S", shares="even", block=8)
    assert torch.equal(mrp.weight, METHODS["sparsegpt"](weight, gram, Unstructured(0.5, "row"), block=8).weight)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_solvers_agree(pattern: Pattern):
    weight, gram = problem(8, 32)
    one, other = (METHODS["mrp"](weight, gram, pattern, solver=solver) for solver in ("cholesky", "cg"))
    assert torch.equal(one.mask, other.mask)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)  # weights may differ where the loss is flat


def test_memory_changes_nothing():
    weight, gram = problem(16, 32)
    for pattern in PATTERNS:
        small = METHODS["mrp"](weight, gram, pattern, memory=10_000)
        torch.testing.assert_close(small.weight, METHODS["mrp"](weight, gram, pattern).weight)


@pytest.mark.parametrize("name", METHODS)
def test_zeros_of_the_weight_stay_and_are_counted(name: str):
    weight, gram = problem(8, 32)
    weight[:, ::3] = 0  # 11 of 32
    weight[4] = 0
    weight[5, :20] = 0
    found = METHODS[name](weight, gram, Unstructured(0.5, "row"))
    assert not found.mask[weight == 0].any()
    assert (~found.mask).sum(1).tolist() == [16, 16, 16, 16, 32, 24, 16, 16]


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_has_the_pattern_is_returned_as_it_is(name: str):
    weight, gram = problem(8, 32)
    weight = closed.none(weight, NM(2, 4).mask(weight.abs()))
    for pattern in (NM(2, 4), Unstructured(0.5, "row"), Unstructured(0.3)):
        found = METHODS[name](weight, gram, pattern)
        torch.testing.assert_close(found.weight, weight)
        assert found.loss == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "mrp", "alps"])
def test_weights_of_dead_inputs_go_first(name: str):
    weight, x = problem(8, 32)[0], inputs(32)
    x[:, [0, 7, 19]] = 0
    found = METHODS[name](weight, Gram.of(x, torch.float64), Unstructured(0.5, per="matrix"))
    if name != "sparsegpt":  # which takes as much from every block
        assert not found.mask[:, [0, 7, 19]].any()
    assert bool(found.weight.isfinite().all())


@pytest.mark.parametrize("name", ["sparsegpt", "mrp", "alps"])
def test_fewer_tokens_than_inputs_are_enough_and_more_damping_is_said(name: str):
    weight, gram = problem(8, 32)[0], Gram.of(inputs(32, tokens=8), torch.float64)
    assert METHODS[name](weight, gram, NM(2, 4)).damping == 0.01
    found = METHODS[name](weight, gram, NM(2, 4), damping=0.0)
    assert 0 < found.damping < 0.01
    assert bool(found.weight.isfinite().all())


def test_baselines_need_no_inverse():
    weight, gram = problem(4, 8)[0], Gram.of(inputs(8, tokens=2), torch.float64)
    assert METHODS["wanda"](weight, gram, NM(2, 4)).damping is None


def test_pcg_ends_at_the_exact_finish():
    weight, gram = problem(8, 32)
    exact = METHODS["alps"](weight, gram, NM(2, 4), finish="exact")
    pcg = METHODS["alps"](weight, gram, NM(2, 4), steps=300)
    assert pcg.loss == pytest.approx(exact.loss, rel=1e-6)
    assert exact.loss < METHODS["alps"](weight, gram, NM(2, 4), steps=1).loss


def test_the_given_weight_is_left_alone_and_no_gradient_is_kept():
    weight, gram = problem(4, 16)
    parameter = torch.nn.Parameter(weight.clone())
    for method in METHODS.values():
        assert not method(parameter, gram, NM(2, 4)).weight.requires_grad
    assert torch.equal(parameter.detach(), weight)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_devices_agree(name: str):
    weight, gram = problem(16, 32)
    there = METHODS[name](weight.cuda(), gram, NM(2, 4))
    assert there.weight.is_cuda
    torch.testing.assert_close(there.weight.cpu(), METHODS[name](weight, gram, NM(2, 4)).weight)


CONTRADICTIONS = [
    (
        "mrp",
        Unstructured(0.5, "row"),
        {"mask": "M"},
        "mask='M' tries the sets of an N:M pattern, and 0.5 per row is none",
    ),
    ("mrp", NM(2, 4), {"mask": "X"}, "mask='X' is unknown"),
    ("mrp", NM(2, 4), {"compensation": "none"}, "compensation='none' is unknown"),
    ("mrp", NM(2, 4), {"compensation": "S", "exact": True}, "take compensation='M'"),
    ("mrp", NM(2, 4), {"shares": "dense"}, "has no meaning for 2:4"),
    ("mrp", Unstructured(0.5, "row"), {"shares": "odd"}, "shares='odd' is unknown"),
    ("mrp", NM(2, 4), {"sweep": False, "compensation": "S"}, "sweep=False chooses all masks at once"),
    ("mrp", NM(2, 4), {"sweep": False, "exact": False}, "sweep=False chooses all masks at once"),
    ("mrp", NM(2, 4), {"sweep": False, "block": 8}, "sweep=False has no blocks"),
    ("mrp", NM(2, 4), {"block": 0}, "block=0 is no number of columns"),
    ("sparsegpt", NM(2, 4), {"block": -1}, "block=-1 is no number of columns"),
    ("mrp", NM(2, 4), {"solver": "lu"}, "solver='lu' is unknown"),
    ("mrp", NM(2, 4), {"solver": "cg", "compensation": "S"}, "solver= is of whole rows"),
    ("mrp", NM(2, 4), {"solver": "cg", "exact": False}, "solver= is of whole rows"),
    ("alps", NM(2, 4), {"finish": "cg"}, "finish='cg' is unknown"),
    ("alps", NM(2, 4), {"steps": -1}, "steps=-1 is no number"),
    ("wanda", NM(2, 4), {"damping": 0.1}, "wanda has no option damping; it has none"),
    ("sparsegpt", NM(2, 4), {"blocks": 8}, "sparsegpt has no option blocks; it has block, damping"),
    ("mrp", NM(2, 4), {"memory": 0}, "memory=0 is no number of bytes"),
    ("mrp", NM(2, 5), {}, "2:5 needs groups of 5 weights, and rows of 16 have 1 left over"),
]


@pytest.mark.parametrize(("name", "pattern", "options", "message"), CONTRADICTIONS)
def test_options_that_make_no_sense_are_refused(name: str, pattern: Pattern, options: dict, message: str):
    weight, gram = problem(4, 16)
    with pytest.raises(CompressError, match=message):
        METHODS[name](weight, gram, pattern, **options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name: str, bad: float):
    weight, gram = problem(4, 16)
    weight[2, 3] = bad
    with pytest.raises(CompressError, match=r"1 values of the weight \(4, 16\) are NaN or infinite"):
        METHODS[name](weight, gram, NM(2, 4))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.rand(4, 8), "has 8 columns, and its inputs' Gram matrix is of 16"),
        (torch.rand(4, 16, 1), r"shape \(4, 16, 1\).*a float matrix is needed"),
        (torch.ones(4, 16, dtype=torch.int8), "in torch.int8: a float matrix is needed"),
    ],
)
def test_other_weights_are_refused(weight: Tensor, message: str):
    with pytest.raises(CompressError, match=message):
        METHODS["mrp"](weight, problem(1, 16)[1], NM(2, 4))
