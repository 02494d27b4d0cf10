"""The multiple mask: the cheapest set of every group, found among all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import CompressError
from fxcompress.weights import groups
from fxcompress.weights.pattern import NM
from fxcompress.weights.scores import single
from tests.weights import laws, oracles
from tests.weights.problems import damped, none_zero, problem


def test_group_mask_is_the_cheapest_set():
    laws.group_mask_is_the_cheapest_set()


@given(st.integers(1, 5), st.integers(0, 1000), st.sampled_from([(1, 2), (1, 3), (2, 4), (2, 5), (3, 4)]))
def test_group_mask_is_the_cheapest_set_of_any_problem(m: int, seed: int, pattern: tuple[int, int]):
    keep, of = pattern
    weight, G = problem(m, 3 * of, seed)[0], damped(3 * of, seed).inverse
    found = groups.mask(weight, groups.squares(G, of), NM(keep, of), none_zero(weight))
    assert torch.equal(found, oracles.cheapest_sets(weight, G, keep, of))


def test_one_removed_weight_is_the_single_score():
    weight, G = problem(8, 24)[0], damped(24).inverse
    found = groups.mask(weight, groups.squares(G, 4), NM(3, 4), none_zero(weight))
    assert torch.equal(found, NM(3, 4).mask(single(weight, G.diagonal())))


def test_memory_changes_nothing():
    weight, G = problem(16, 16)[0], damped(16).inverse
    args = weight, groups.squares(G, 8), NM(4, 8), none_zero(weight)
    assert torch.equal(groups.mask(*args, memory=1), groups.mask(*args))


def test_sets_differ_from_single_scores_where_inputs_are_alike():
    """Of two inputs that are nearly one, either can go but not both; single scores see two weights that cost little."""
    x = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = x[:, 0] + 0.01 * x[:, 1]
    G = torch.linalg.inv(x.T @ x / 500)
    weight = torch.tensor([[2.0, 2.0, 1.0, 1.0]], dtype=torch.float64)
    assert NM(2, 4).mask(single(weight, G.diagonal())).tolist() == [[False, False, True, True]]
    found = groups.mask(weight, G[None], NM(2, 4), none_zero(weight))
    assert found[0, :2].sum() == found[0, 2:].sum() == 1


def test_zeros_go_first_even_where_another_set_is_cheaper():
    weight, G = problem(12, 16)[0], damped(16).inverse
    weight[:, 5] = 0
    weight[3, 8:11] = 0  # more than are removed
    found = groups.mask(weight, groups.squares(G, 4), NM(2, 4), weight == 0)
    assert not found[weight == 0].any()
    removed = (~found).view(12, 4, 4).sum(-1)
    assert removed[3, 2] == 3
    assert (removed == 2).sum() == removed.numel() - 1


def test_a_pattern_of_too_many_sets_is_refused():
    weight, G = problem(1, 32)[0], damped(32).inverse
    with pytest.raises(CompressError, match=r"16:32 has 601,080,390 sets a group.*single"):
        groups.mask(weight, groups.squares(G, 32), NM(16, 32), none_zero(weight))
