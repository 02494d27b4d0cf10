"""The support search of ALPS: of the pattern, and one that loses little."""

from __future__ import annotations

import pytest

from fxcompress.weights import alps, blocked, compensation
from fxcompress.weights.pattern import NM, Pattern, Unstructured
from tests.weights.problems import damped, loss, none_zero, problem

PATTERNS = [Unstructured(0.5, "row"), Unstructured(0.7), NM(2, 4), NM(4, 8)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_support_is_of_the_pattern(pattern: Pattern):
    weight = problem(8, 32)[0]
    mask = alps.support(weight, damped(32), pattern, none_zero(weight))
    if isinstance(pattern, NM):
        assert (mask.view(8, -1, pattern.of).sum(-1) == pattern.keep).all()
    elif pattern.per == "row":
        assert (mask.sum(1) == 16).all()
    else:
        assert int((~mask).sum()) == round(0.7 * 8 * 32)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_support_loses_less_than_that_of_single_scores(pattern: Pattern):
    """No law, but what the search is for: over ten problems together."""
    found = dense = 0.0
    for seed in range(10):
        weight, D = problem(8, 32, seed)[0], damped(32, seed)
        for mask, name in (
            (alps.support(weight, D, pattern, none_zero(weight)), "found"),
            (blocked.at_once(weight, D, pattern, none_zero(weight)), "dense"),
        ):
            lost = float(loss(weight, compensation.exact(weight, mask, D), D.matrix).sum())
            found, dense = (found + lost, dense) if name == "found" else (found, dense + lost)
    assert found < dense


def test_zeros_stay_zero():
    weight = problem(6, 32)[0]
    weight[:, ::5] = 0
    mask = alps.support(weight, damped(32), NM(2, 4), weight == 0)
    assert not mask[weight == 0].any()
    assert (mask.view(6, 8, 4).sum(-1) == 2).all()
