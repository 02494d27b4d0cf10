"""The algebra of axes, against what the same movements do to an enumeration of indices."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxcompress.axis import Axis, Equations, concat, factors, leaves, size
from fxcompress.keep import coordinates, kept_indices, kept_size


def axis(n: int) -> tuple[Axis, ...]:
    return (Axis(n),)


def sizes(dim: tuple[Axis, ...]) -> list[int]:
    return [a.size for a in factors(dim)]


def test_equal_free_axes_become_one():
    x, y = axis(6), axis(6)
    Equations().tie(x, y, "test")
    assert factors(x) == factors(y)


def test_a_free_axis_takes_the_factors_it_is_tied_to():
    whole = axis(12)
    Equations().tie(whole, (Axis(3), Axis(4)), "test")
    assert sizes(whole) == [3, 4]


def test_different_factors_are_refined_to_their_common_ones():
    x, y = (Axis(2), Axis(6)), (Axis(4), Axis(3))
    equations = Equations()
    equations.tie(x, y, "test")
    assert sizes(x) == sizes(y) == [2, 2, 3]
    assert not equations.pinned()


def test_factors_without_a_common_refinement_pin_both_sides():
    x, y = (Axis(2), Axis(3)), (Axis(3), Axis(2))
    equations = Equations()
    equations.tie(x, y, "a view")
    assert set(equations.pinned()) == {*leaves(x), *leaves(y)}
    assert "do not align" in next(iter(equations.pinned().values()))[0]


def test_size_one_ties_to_nothing_and_pins_nothing():
    x = (Axis(1), Axis(5))
    equations = Equations()
    equations.tie(x, axis(5), "test")
    assert not equations.pinned()


def test_sums_are_cut_at_the_offsets_of_both_sides():
    x, y = concat([axis(4), axis(8)]), concat([axis(6), axis(6)])
    Equations().tie(x, y, "test")
    assert [a.size for a in leaves(x)] == [4, 2, 6] == [a.size for a in leaves(y)]


def test_swapped_halves_tie_the_two_halves_to_each_other():
    equations = Equations()
    whole = axis(8)
    first, second = equations.cut(whole, [4], "split")
    equations.tie(whole, concat([second, first]), "rotate")
    assert len(set(leaves(whole))) == 1


def test_a_sum_equals_a_product_where_its_parts_are_whole_rows():
    equations = Equations()
    total = concat([axis(4), axis(8)])
    grid = (Axis(3), Axis(4))
    equations.tie(total, grid, "view")
    assert not equations.pinned()
    assert [a.size for a in leaves(total)] == [4, 2, 4]


def test_a_cut_inside_a_row_of_a_product_pins():
    equations = Equations()
    grid = (Axis(3), Axis(4))
    parts = equations.cut(grid, [5], "split")
    assert [size(p) for p in parts] == [5, 7]
    assert set(equations.pinned()) >= set(leaves(grid))


def test_an_axis_that_would_be_a_part_of_itself_is_pinned_not_unrolled():
    equations = Equations()
    a = Axis(6)
    whole = concat([(a,), ()])  # of size 7: a and one more
    a.size = 7  # as a recurrence would ask for
    equations.tie((a,), whole, "scan")
    assert a in equations.pinned()


def test_a_pin_reaches_parts_that_are_made_later():
    equations = Equations()
    whole = axis(12)
    equations.pin(whole, "because")
    equations.tie(whole, (Axis(3), Axis(4)), "view")
    assert all(equations.pinned()[part] == ["because"] for part in leaves(whole))


# ---- laws over random movements --------------------------------------------------------------------------------------


@st.composite
def movements(draw) -> tuple[list[int], list[tuple]]:
    """A starting shape of named factors and a chain of views, permutations, splits and concatenations."""
    start = draw(st.lists(st.sampled_from([2, 3, 4]), min_size=2, max_size=4))
    chain = draw(st.lists(st.tuples(st.sampled_from(["merge", "swap", "halve"]), st.integers(0, 3)), max_size=5))
    return start, chain


def move(start: list[int], chain: list[tuple], equations: Equations):
    """Apply a chain to dims and to an enumeration of the same shape."""
    dims = [axis(n) for n in start]
    free = [d[0] for d in dims]
    values = torch.arange(torch.Size(start).numel()).view(start)
    for kind, where in chain:
        i = where % len(dims)
        if kind == "merge" and i + 1 < len(dims):
            dims[i : i + 2] = [(*dims[i], *dims[i + 1])]
            values = values.flatten(i, i + 1)
        elif kind == "swap" and i + 1 < len(dims):
            dims[i], dims[i + 1] = dims[i + 1], dims[i]
            values = values.transpose(i, i + 1)
        elif kind == "halve":
            outer = factors(dims[i])[0].size
            if outer < 2:
                continue
            inner = size(dims[i]) // outer
            at = inner * (outer // 2)
            first, second = equations.cut(dims[i], [at], "halve")
            dims[i] = concat([second, first])
            values = torch.cat([values.narrow(i, at, size(second)), values.narrow(i, 0, at)], i)
    return free, dims, values


@given(movements(), st.integers(0, 2**16))
def test_kept_indices_are_those_that_moved_indices_select(case, seed):
    """Cutting the enumeration at the start and moving it equals moving it and cutting by ``kept_indices``."""
    equations = Equations()
    free, dims, values = move(*case, equations)
    assume(not equations.pinned())  # what is pinned is never cut
    generator = torch.Generator().manual_seed(seed)
    keep = {
        a: torch.randperm(a.size, generator=generator)[: 1 + seed % a.size].sort().values
        for a in dict.fromkeys(a for f in free for a in leaves((f,)))
    }
    cut = values
    for i, dim in enumerate(dims):
        cut = cut.index_select(i, kept_indices(dim, keep, {}))
    origin = torch.arange(torch.Size(case[0]).numel()).view(case[0])
    for i, a in enumerate(free):
        origin = origin.index_select(i, kept_indices((a,), keep, {}))
    assert set(cut.flatten().tolist()) == set(origin.flatten().tolist())
    assert list(cut.shape) == [kept_size(dim, keep) for dim in dims]


@given(movements(), st.integers(0, 2**16))
def test_coordinates_and_kept_indices_tell_the_same(case, seed):
    """The two ways to evaluate a keep, one used by the rewrite and one by the proof, agree."""
    _, dims, _ = move(*case, Equations())
    for dim in dims:
        for a in dict.fromkeys(leaves(dim)):
            kept = torch.arange(0, a.size, 1 + seed % 2)
            at = coordinates(dim, [a])[:, 0]
            stays = (at < 0) | torch.isin(at, kept)
            if sum(b is a for b in leaves(dim)) == 1 or _only_in_sums(dim):
                assert kept_indices(dim, {a: kept}, {}).tolist() == stays.nonzero()[:, 0].tolist()


def _only_in_sums(dim) -> bool:
    return len(factors(dim)) == 1


def test_kept_indices_may_differ_from_group_to_group():
    g, r, p = Axis(2), Axis(3), Axis(2)
    keep = {r: torch.tensor([[0, 2], [1, 2]])}
    got = kept_indices((g, r, p), keep, {r: (g,)})
    assert got.tolist() == [0, 1, 4, 5, 8, 9, 10, 11]


def test_a_choice_follows_its_group_when_groups_are_cut_too():
    g, r = Axis(3), Axis(2)
    keep = {g: torch.tensor([0, 2]), r: torch.tensor([[0], [1], [1]])}
    assert kept_indices((g, r), keep, {r: (g,)}).tolist() == [0, 5]
