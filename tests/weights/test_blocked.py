"""The sweep over blocks: SparseGPT where it says so, the closed form where one block is the whole row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.weights import blocked, compensation
from fxcompress.weights.groups import mask as cheapest
from fxcompress.weights.groups import squares
from fxcompress.weights.pattern import NM, Pattern, Unstructured
from fxcompress.weights.scores import single
from tests.weights import laws
from tests.weights.problems import damped, none_zero, problem

PATTERNS = [Unstructured(0.5, "row"), Unstructured(0.3), NM(2, 4), NM(1, 4)]
PAIRS = [("S", "S"), ("S", "M"), ("M", "S"), ("M", "M")]


def possible(pattern: Pattern, mask: str) -> bool:
    return mask == "S" or isinstance(pattern, NM)


def test_sweep_is_the_published_algorithm():
    laws.sweep_is_the_published_algorithm()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="".join)
@pytest.mark.parametrize("block", [1, 8, 10, 24, 100])
def test_pattern_holds_and_removed_weights_are_zero(pattern: Pattern, pair: tuple[str, str], block: int):
    if not possible(pattern, pair[0]):
        return
    weight = problem(5, 24)[0]
    found, mask = blocked.sweep(weight, damped(24), pattern, none_zero(weight), *pair, block)
    assert torch.equal(found != 0, mask)
    if isinstance(pattern, NM):
        assert (mask.view(5, -1, pattern.of).sum(-1) == pattern.keep).all()
    elif pattern.per == "row":
        assert ((~mask).sum(1) == round(pattern.sparsity * 24)).all()
    else:
        assert int((~mask).sum()) == round(pattern.sparsity * 5 * 24)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_one_block_at_once_is_the_closed_form(pattern: Pattern):
    weight, D = problem(6, 24)[0], damped(24)
    for rule in "SM" if isinstance(pattern, NM) else "S":
        found, mask = blocked.sweep(weight, D, pattern, none_zero(weight), rule, "M", block=24)
        assert torch.equal(mask, blocked.at_once(weight, D, pattern, none_zero(weight), rule))
        torch.testing.assert_close(found, compensation.exact(weight, mask, D))


def test_masks_at_once_are_those_of_the_scores():
    weight, D = problem(6, 24)[0], damped(24)
    G, zero = D.inverse, none_zero(weight)
    found = blocked.at_once(weight, D, Unstructured(0.5, "row"), zero)
    assert torch.equal(found, Unstructured(0.5, "row").mask(single(weight, G.diagonal())))
    assert torch.equal(blocked.at_once(weight, D, NM(2, 4), zero, "M"), cheapest(weight, squares(G, 4), NM(2, 4), zero))


def test_single_columns_at_once_are_columns_one_by_one():
    """Blocks of one group are where S and M agree: one weight is removed at a time."""
    weight, D = problem(6, 24)[0], damped(24)
    for pattern, block in ((Unstructured(0.5, "row"), 1), (NM(1, 2), 2)):
        found = [blocked.sweep(weight, D, pattern, none_zero(weight), "S", rule, block) for rule in "SM"]
        if block == 1:
            torch.testing.assert_close(found[0], found[1])
        else:
            loss = [((weight - w) @ D.matrix * (weight - w)).sum() for w, _ in found]
            assert loss[0] != loss[1]  # of two columns, the first may move when the second goes


@given(st.integers(0, 1000), st.sampled_from([4, 8, 12]))
def test_a_plan_says_how_much_a_block_loses(seed: int, block: int):
    weight, D, pattern = problem(4, 24, seed)[0], damped(24, seed), Unstructured(0.5, "row")
    plan = blocked.at_once(weight, D, pattern, none_zero(weight))
    _, mask = blocked.sweep(weight, D, pattern, none_zero(weight), "S", "M", block, plan)
    assert torch.equal(mask.view(4, -1, block).sum(-1), plan.view(4, -1, block).sum(-1))


@pytest.mark.parametrize("pair", PAIRS, ids="".join)
def test_columns_that_are_frozen_do_not_change_any_more(pair: tuple[str, str]):
    """What comes later decides nothing about the first block."""
    weight, D = problem(4, 24)[0], damped(24)
    other = weight.clone()
    other[:, 8:] += 1
    first, second = (blocked.sweep(w, D, NM(2, 4), none_zero(w), *pair, block=8)[0] for w in (weight, other))
    torch.testing.assert_close(first[:, :8], second[:, :8])


@pytest.mark.parametrize("pair", PAIRS, ids="".join)
def test_zeros_stay_zero(pair: tuple[str, str]):
    weight = problem(6, 24)[0]
    weight[:, ::5] = 0
    found, mask = blocked.sweep(weight, damped(24), NM(2, 4), weight == 0, *pair, block=8)
    assert not mask[weight == 0].any()
    assert torch.count_nonzero(found[weight == 0]) == 0
    assert (mask.view(6, 6, 4).sum(-1) == 2).all()  # none has more zeros than go


def test_the_given_weight_is_left_alone():
    weight = problem(4, 16)[0]
    before = weight.clone()
    blocked.sweep(weight, damped(16), NM(2, 4), none_zero(weight))
    assert torch.equal(weight, before)
