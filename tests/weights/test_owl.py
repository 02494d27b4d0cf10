"""OWL: layers with more outliers lose less, within bounds, and all together exactly what was asked."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import CompressError
from fxcompress.weights.owl import allocate, outlier_ratio

LAYERS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=40)


@given(LAYERS, st.floats(0.1, 0.9), st.floats(0, 0.099))
def test_mean_over_weights_is_what_was_asked(layers: list[tuple[float, int]], sparsity: float, width: float):
    outliers, sizes = zip(*layers, strict=True)
    found = allocate(outliers, sizes, sparsity, width)
    mean = sum(s * size for s, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(sparsity, abs=1e-12)
    assert all(sparsity - width <= one <= sparsity + width for one in found)


@given(LAYERS)
def test_more_outliers_never_lose_more(layers: list[tuple[float, int]]):
    outliers, sizes = zip(*layers, strict=True)
    ordered = [sparsity for _, sparsity in sorted(zip(outliers, allocate(outliers, sizes, 0.5), strict=True))]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(ordered))


def test_sparsity_falls_linearly_from_the_upper_to_the_lower_bound():
    assert allocate([0.0, 0.01, 0.02], [5, 5, 5], 0.5, 0.08) == pytest.approx([0.58, 0.5, 0.42])


def test_a_large_layer_stays_nearer_to_what_was_asked():
    large, small = allocate([0.0, 0.02], [900, 100], 0.5, 0.08)
    assert small == pytest.approx(0.42)
    assert large == pytest.approx(0.5 + 0.08 / 9)


def test_layers_alike_lose_the_same():
    assert allocate([0.01, 0.01], [3, 7], 0.6) == [0.6, 0.6]


def test_outliers_are_what_exceeds_the_mean_of_the_whole_layer():
    scores = [torch.ones(9, 10), torch.full((1, 10), 21.0)]  # mean 3
    assert outlier_ratio(scores, threshold=5) == 0.1
    assert outlier_ratio(scores, threshold=7) == 0.0


@pytest.mark.parametrize(("sparsity", "width"), [(0.05, 0.08), (0.95, 0.08), (0.5, -0.1)])
def test_bounds_outside_of_0_to_1_are_refused(sparsity: float, width: float):
    with pytest.raises(CompressError, match=r"reaches from .* outside \(0, 1\)"):
        allocate([0.1, 0.2], [1, 1], sparsity, width)


def test_lists_of_different_length_are_refused():
    with pytest.raises(CompressError, match="outliers of 2 layers and sizes of 1"):
        allocate([0.1, 0.2], [1], 0.5)
