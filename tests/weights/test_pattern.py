"""A pattern removes exactly what it says, the lowest first, zeros before all others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import CompressError
from fxcompress.weights.pattern import NM, Unstructured, parse
from tests.weights.problems import none_zero, problem

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
SPARSITY = st.floats(0.01, 0.99)


def scores(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return problem(m, n, seed)[0].abs()


@given(SIZES, SPARSITY)
def test_every_row_loses_its_part_exactly(size: tuple[int, int, int], sparsity: float):
    m, n, _ = size
    mask = Unstructured(sparsity, per="row").mask(scores(*size))
    assert mask.shape == (m, n)
    assert (~mask).sum(1).tolist() == [round(sparsity * n)] * m


@given(SIZES, SPARSITY)
def test_a_matrix_loses_its_part_exactly(size: tuple[int, int, int], sparsity: float):
    m, n, _ = size
    assert int((~Unstructured(sparsity).mask(scores(*size))).sum()) == round(sparsity * m * n)


@given(st.integers(1, 9), st.integers(1, 6), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]))
def test_every_group_keeps_its_number_exactly(m: int, groups: int, pattern: tuple[int, int]):
    keep, of = pattern
    mask = NM(keep, of).mask(scores(m, groups * of))
    assert (mask.view(m, groups, of).sum(-1) == keep).all()


@given(SIZES, SPARSITY, st.sampled_from(["row", "matrix"]))
def test_what_goes_scores_no_more_than_what_stays(size: tuple[int, int, int], sparsity: float, per: str):
    values = scores(*size)
    mask = Unstructured(sparsity, per).mask(values)
    lines = zip(values, mask, strict=True) if per == "row" else [(values, mask)]
    for line, kept in lines:
        assert not kept.any() or kept.all() or line[~kept].max() <= line[kept].min()


@pytest.mark.parametrize("pattern", [Unstructured(0.5, "row"), NM(2, 4)])
def test_of_equal_scores_the_first_go(pattern):
    assert pattern.mask(torch.ones(1, 4)).tolist() == [[False, False, True, True]]


@given(SIZES, SPARSITY, st.sampled_from(["row", "matrix"]), st.floats(0, 1), st.integers(1, 12))
def test_parts_add_up_to_the_whole(size: tuple[int, int, int], sparsity: float, per: str, zeros: float, block: int):
    m, n, seed = size
    values = scores(*size)
    zero = torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < zeros
    pattern = Unstructured(sparsity, per)
    whole = pattern.mask(values, zero)
    for plan in (None, whole):
        starts = range(0, n, block)
        parts = torch.cat([pattern.part(values[:, i : i + block], zero, i, plan) for i in starts], 1)
        lines = 1 if per == "row" else (0, 1)
        assert torch.equal((~parts).sum(lines), (~whole).sum(lines))
        assert not parts[zero].any()


def test_parts_follow_a_plan():
    values, pattern = scores(2, 8), Unstructured(0.5, "row")
    plan = torch.tensor([[True] * 4 + [False] * 4, [False] * 4 + [True] * 4])
    first = pattern.part(values[:, :4], none_zero(values), 0, plan)
    assert first.tolist() == plan[:, :4].tolist()


@given(SIZES, SPARSITY)
def test_zeros_go_first_and_are_counted(size: tuple[int, int, int], sparsity: float):
    m, n, seed = size
    values = scores(*size) - 1  # scores below zero do not go before zeros
    zero = torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask = Unstructured(sparsity, "row").mask(values, zero)
    assert not mask[zero].any()
    assert (~mask).sum(1).tolist() == [max(round(sparsity * n), int(zeros)) for zeros in zero.sum(1)]


def test_a_group_with_zeros_enough_loses_nothing_else():
    zero = torch.tensor([[False, True, False, True], [True, True, True, False]])
    assert torch.equal(NM(2, 4).mask(torch.rand(2, 4), zero), ~zero)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("2:4", NM(2, 4)), ("4:8", NM(4, 8)), ("0.5 per row", Unstructured(0.5, "row")), (".75", Unstructured(0.75))],
)
def test_text_of_a_pattern(text: str, pattern):
    assert parse(text) == pattern
    assert parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2:4:8",
        "2/4",
        "50%",
        "1",
        "1.5",
        "-0.5",
        "nan",
        "0.5 ",
        "0.5 per matrix",
        "2:4 per row",
        "2:4\n",
        "0:4",
        "4:4",
    ],
)
def test_other_text_is_refused(text: str):
    with pytest.raises(CompressError, match="is no pattern"):
        parse(text)


def test_groups_that_do_not_divide_a_row_are_refused_with_sizes():
    with pytest.raises(CompressError, match=r"2:4 needs groups of 4.*rows of 10 have 2 left over.*8 and 12"):
        NM(2, 4).mask(torch.rand(3, 10))


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, float("nan")])
def test_a_part_outside_of_0_to_1_is_refused(sparsity: float):
    with pytest.raises(CompressError, match=r"outside \(0, 1\)"):
        Unstructured(sparsity)


def test_an_unknown_comparison_is_refused():
    with pytest.raises(CompressError, match="per='column' is unknown"):
        Unstructured(0.5, per="column")  # type: ignore[arg-type]


def test_a_kept_number_that_is_no_part_is_refused():
    for keep, of in ((0, 4), (4, 4), (5, 4), (-1, 4)):
        with pytest.raises(CompressError, match="with 0 < N < M"):
            NM(keep, of)


@given(SIZES, SPARSITY, st.sampled_from(["row", "matrix"]))
def test_what_a_pattern_removes_is_what_it_says_and_what_it_misses(size, sparsity: float, per):
    m, n, _ = size
    pattern = Unstructured(sparsity, per)
    zero = ~pattern.mask(scores(*size))
    assert pattern.missing(zero) == 0
    assert int(zero.sum()) == pattern.removed(m, n)
    if zero.any():
        zero[tuple(zero.nonzero()[0])] = False
        assert pattern.missing(zero) == 1


def test_zeros_of_one_row_stand_for_those_of_another_in_a_matrix_alone():
    zero = torch.zeros(1, 4, 8, dtype=torch.bool)
    zero[:, :2] = True
    assert Unstructured(0.5).missing(zero) == 0
    assert Unstructured(0.5, "row").missing(zero) == 8
    assert NM(2, 4).missing(zero) == 8


def test_zeros_of_one_matrix_never_stand_for_those_of_another():
    zero = torch.zeros(2, 4, 8, dtype=torch.bool)
    zero[0] = True
    assert Unstructured(0.5).missing(zero) == Unstructured(0.5, "row").missing(zero) == NM(2, 4).missing(zero) == 16
