"""What the rules of the ops say of their axes and costs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fxcompress import kernels
from fxcompress.einop import parse
from fxcompress.kernels.attention.reference import attention
from fxcompress.kernels.causal_conv1d.reference import causal_conv1d
from fxcompress.kernels.experts.reference import experts
from fxcompress.rule import RULES


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.fxcompress, name).default


def sizes_by_letter(operands: list[list], inputs: list[Tensor]) -> dict[str, int]:
    dims = [dim for terms, x in zip(operands, inputs, strict=True) for dim in zip(terms, x.shape, strict=True)]
    sizes = {term: n for term, n in dims if isinstance(term, str)}
    for (_, letters), n in (dim for dim in dims if not isinstance(dim[0], str)):
        unknown = [letter for letter in letters if letter not in sizes]
        if unknown:
            sizes[unknown[0]] = n // math.prod(sizes[letter] for letter in letters if letter in sizes)
    return sizes


def indices(term: Any, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    """Where in a dim the kept indices of one of its letters are."""
    letters = [term] if isinstance(term, str) else term[1]
    grid = torch.arange(math.prod(sizes[x] for x in letters)).view([sizes[x] for x in letters])
    return grid.index_select(letters.index(letter), keep).flatten()


def cut(x: Tensor, terms: list, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    for dim, term in enumerate(terms):
        if letter in (term if isinstance(term, str) else term[1]):
            x = x.index_select(dim, indices(term, letter, keep, sizes))
    return x


def zero_the_rest(x: Tensor, terms: list, letter: str, keep: Tensor, sizes: dict[str, int]) -> Tensor:
    for dim, term in enumerate(terms):
        if letter in (term if isinstance(term, str) else term[1]):
            kept = torch.zeros(x.shape[dim]).index_fill(0, indices(term, letter, keep, sizes), 1)
            x = x * kept.view([-1] + [1] * (x.dim() - dim - 1)).to(x.dtype)
    return x


ROLES = [
    (name, letter)
    for name in kernels.__all__
    for letter in RULES[overload(name)].einop.roles
    if letter not in RULES[overload(name)].einop.pins
    if letter not in RULES[overload(name)].einop.addresses.values()  # cut together with what addresses it
]


@pytest.mark.parametrize(("name", "letter"), ROLES)
def test_cutting_an_axis_is_cutting_the_output_or_masking_what_is_contracted(sample: Callable, name: str, letter: str):
    inputs, (left, right) = sample(name), parse(RULES[overload(name)].einop.spec)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    sizes = sizes_by_letter(left, tensors)
    keep = torch.arange(sizes[letter])[1:]

    def changed(change: Callable[..., Tensor]) -> Tensor:
        operands = iter([change(x, terms, letter, keep, sizes) for x, terms in zip(tensors, left, strict=True)])
        return getattr(kernels, name)(*(next(operands) if isinstance(x, Tensor) else x for x in inputs))

    in_output = any(letter in (term if isinstance(term, str) else term[1]) for term in right)
    expected = cut(getattr(kernels, name)(*inputs), right, letter, keep, sizes) if in_output else changed(zero_the_rest)
    torch.testing.assert_close(changed(cut), expected, rtol=0, atol=1e-12)


def test_what_is_decided_elsewhere_is_pinned():
    assert RULES[overload("experts")].einop.addresses == {"index": "e"}
    assert set(RULES[overload("experts")].einop.pins) == {"j", "m"}
    assert set(RULES[overload("causal_conv1d")].einop.pins) == {"w", "l"}


@pytest.mark.parametrize("name", ["causal_conv1d", "selective_scan", "ssd_scan", "gated_delta"])
def test_positions_are_never_cut(name: str):
    assert "l" in RULES[overload(name)].einop.pins


def sizes_of(name: str, inputs: tuple) -> dict[str, int]:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    return sizes_by_letter(parse(RULES[overload(name)].einop.spec)[0], tensors)


@pytest.mark.parametrize("reference", [attention, causal_conv1d, experts])
def test_their_flops_are_what_the_reference_spends_in_multiplications(sample: Callable, reference: Callable):
    name = reference.__name__
    with FlopCounterMode(display=False) as counter:
        reference(*sample(name))
    assert RULES[overload(name)].flops(sizes_of(name, sample(name))) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("ssd_scan", 6 * 2 * 7 * 4 * 3 * 5),  # three multiply-adds a state and token
        ("selective_scan", 6 * 2 * 4 * 7 * 3),
        ("gated_delta", 7 * 2 * 7 * 4 * 3 * 5),  # a decay, and multiply-adds to ask, correct and read
    ],
    ids=str,
)
def test_the_flops_of_a_scan_are_those_of_its_recurrence(sample: Callable, name: str, flops: int):
    assert RULES[overload(name)].flops(sizes_of(name, sample(name))) == flops


@pytest.mark.parametrize(
    ("name", "per_token", "per_sequence"),
    [
        ("attention", 2 * (4 + 6), 0),
        ("ssd_scan", 0, 4 * 3 * 5),
        ("selective_scan", 0, 4 * 3),
        ("gated_delta", 0, 4 * 3 * 5),
        ("causal_conv1d", 0, 5 * 3),
    ],
)
def test_what_they_keep_for_generation(sample: Callable, name: str, per_token: int, per_sequence: int):
    assert RULES[overload(name)].cache(sizes_of(name, sample(name))) == (per_token, per_sequence)
