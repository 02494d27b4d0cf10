"""Laws of compensation and masks on fixed problems. They take what they judge: a fault can be put in its place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from fxcompress.weights import blocked, compensation, groups
from fxcompress.weights.gram import Damped
from fxcompress.weights.pattern import NM, Unstructured
from tests.weights import oracles
from tests.weights.problems import damped, none_zero, problem, random_mask

Exact = Callable[[Tensor, Tensor, Damped], Tensor]
Sweep = Callable[..., tuple[Tensor, Tensor]]


def closed_form_is_the_least_squares_solution(exact: Exact = compensation.exact, sparsity: float = 0.5) -> None:
    weight, D, mask = problem(12, 12)[0], damped(12), random_mask(12, 12, sparsity=sparsity)
    torch.testing.assert_close(exact(weight, mask, D), oracles.least_squares(weight, mask, D.matrix))


def closed_form_is_brain_surgeon_in_any_order(exact: Exact = compensation.exact) -> None:
    weight, D, mask = problem(1, 12)[0], damped(12), random_mask(1, 12)
    removed = (~mask[0]).nonzero().flatten()
    for seed in range(3):
        order = removed[torch.randperm(len(removed), generator=torch.Generator().manual_seed(seed))]
        one_by_one = oracles.brain_surgeon(weight[0], order.tolist(), torch.linalg.inv(D.matrix))
        torch.testing.assert_close(exact(weight, mask, D)[0], one_by_one)


def sweep_is_the_published_algorithm(sweep: Sweep = blocked.sweep) -> None:
    weight, D = problem(5, 24)[0], damped(24)
    for block in (4, 10, 24):
        ends = [min(start + block, 24) for start in range(0, 24, block)]
        total = [0, *(round(end / 2) for end in ends)]
        counts = [after - before for before, after in itertools.pairwise(total)]
        found, _ = sweep(weight, D, Unstructured(0.5, "row"), none_zero(weight), block=block)
        torch.testing.assert_close(found, oracles.sparsegpt(weight, D.matrix, block, counts))
    found, _ = sweep(weight, D, NM(2, 4), none_zero(weight), block=8)
    torch.testing.assert_close(found, oracles.sparsegpt(weight, D.matrix, 8, keep=2, of=4))


def group_mask_is_the_cheapest_set(mask: Callable[..., Tensor] = groups.mask) -> None:
    for keep, of in ((2, 4), (1, 4), (3, 4), (4, 8), (2, 3)):
        weight, G = problem(6, 24)[0], damped(24).inverse
        found = mask(weight, groups.squares(G, of), NM(keep, of), none_zero(weight))
        assert torch.equal(found, oracles.cheapest_sets(weight, G, keep, of))


# Faults: what a slip of the pen would make of it, each with the law that must see it.


def _wrong_sign(weight: Tensor, mask: Tensor, D: Damped) -> Tensor:
    return compensation.none(2 * weight - compensation.exact(weight, mask, D), mask)


def _mask_transposed(weight: Tensor, mask: Tensor, D: Damped) -> Tensor:
    return compensation.exact(weight, mask.T.contiguous(), D)


def _columns_off_by_one(weight: Tensor, mask: Tensor, D: Damped) -> Tensor:
    moved = D.matrix.roll((1, 1), (0, 1))
    lower = torch.linalg.cholesky(moved.flip(0, 1))
    return compensation.exact(weight, mask, Damped(moved, lower.flip(0, 1), D.dead, D.damping))


def _sum_of_single_removals(weight: Tensor, mask: Tensor, D: Damped) -> Tensor:
    G = D.inverse
    return compensation.none(weight - (compensation.none(weight, ~mask) / G.diagonal()) @ G, mask)


def _without_down_date(weight: Tensor, D: Damped, *rest: object, **options: object) -> tuple[Tensor, Tensor]:
    G = D.inverse
    upper = (G / G.diagonal().sqrt()[:, None]).triu()  # every column's own row of the G of the beginning
    return blocked.sweep(weight, SimpleNamespace(matrix=D.matrix, upper=upper, dead=D.dead), *rest, **options)  # type: ignore[arg-type]


def _hessian_for_inverse(weight: Tensor, blocks: Tensor, pattern: NM, zero: Tensor) -> Tensor:
    return groups.mask(weight, torch.linalg.inv(blocks), pattern, zero)


def _diagonal_only(weight: Tensor, blocks: Tensor, pattern: NM, zero: Tensor) -> Tensor:
    return groups.mask(weight, torch.diag_embed(blocks.diagonal(dim1=1, dim2=2)), pattern, zero)


FAULTS = [
    (closed_form_is_the_least_squares_solution, _wrong_sign),
    (closed_form_is_the_least_squares_solution, _mask_transposed),
    (closed_form_is_the_least_squares_solution, _columns_off_by_one),
    (closed_form_is_the_least_squares_solution, _sum_of_single_removals),
    (closed_form_is_brain_surgeon_in_any_order, _wrong_sign),
    (closed_form_is_brain_surgeon_in_any_order, _sum_of_single_removals),
    (sweep_is_the_published_algorithm, _without_down_date),
    (group_mask_is_the_cheapest_set, _hessian_for_inverse),
    (group_mask_is_the_cheapest_set, _diagonal_only),
]
