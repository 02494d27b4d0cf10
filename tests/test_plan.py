"""Plans are data: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress import CompressError
from fxcompress.amount import Amount
from fxcompress.plan import Step, read_ranges, read_steps, write_ranges

indices = st.lists(st.integers(0, 300), unique=True, min_size=1, max_size=40)


@given(indices, st.booleans())
def test_ranges_survive_in_their_order(index, ordered):
    tensor = torch.tensor(sorted(index) if ordered else index)
    assert torch.equal(read_ranges(write_ranges(tensor)), tensor)


@given(st.lists(st.permutations(range(6)), min_size=1, max_size=4))
def test_rows_survive(rows):
    tensor = torch.tensor(rows)
    assert torch.equal(read_ranges(write_ranges(tensor)), tensor)


def test_ranges_are_short():
    assert write_ranges(torch.tensor([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"


def test_a_step_survives_json():
    step = Step("PruneFFN", {"a.weight[0]": torch.tensor([[0, 2], [1, 3]])}, ("layers.1",))
    again = Step.from_json(json.loads(json.dumps(step.to_json())))
    assert again.name == step.name
    assert again.remove == step.remove
    assert torch.equal(again.keep["a.weight[0]"], step.keep["a.weight[0]"])


@pytest.mark.parametrize(
    "text",
    [
        *(3, None, {"0": 1}, True),
        *("a-b", "1--2", "1,", ",1", " 1", "1\n", "-1", "+1", "1_0", "١", "5-2", "0-9999999999"),
        *([], ["0", 1], ["0", "0-1"], [["0"], "1"], [[[["0"]]]]),
    ],
)
def test_anything_else_is_no_range(text):
    with pytest.raises(CompressError, match="kept indices"):
        read_ranges(text)


@pytest.mark.parametrize("text", ["0-999999999", "0-6,0-3", ["0-4", "0-4"]])
def test_ranges_stand_for_no_more_indices_than_are_allowed(text):
    with pytest.raises(CompressError, match="too many indices"):
        read_ranges(text, at_most=10)


def test_what_steps_may_stand_for_is_bounded_together():
    steps = [Step("PruneFFN", {"a": torch.arange(6)}).to_json()] * 2
    assert len(read_steps(steps)) == 2
    with pytest.raises(CompressError, match=r"steps\[1\]: 'a': '0-5' stands for too many indices"):
        read_steps(steps, at_most=10)


@pytest.mark.parametrize(
    "data",
    [
        *(None, [], {}, {"pass": "p", "keep": {}}, {"pass": "p", "keep": {}, "remove": [], "more": 1}),
        *({"pass": 1, "keep": {}, "remove": []}, {"pass": "p", "keep": [], "remove": []}),
        *({"pass": "p", "keep": {}, "remove": "abc"}, {"pass": "p", "keep": {}, "remove": [1]}),
        {"pass": "p", "keep": {1: "0"}, "remove": []},
    ],
)
def test_anything_else_is_no_step(data):
    with pytest.raises(CompressError, match="step"):
        Step.from_json(data)


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.integers(1, 8))
def test_a_ratio_goes_to_the_nearest_feasible_count_or_is_refused(count, ratio, step):
    try:
        kept = Amount(ratio=ratio, round_to=step).kept((count,), "a group")
    except CompressError as refusal:
        assert "would remove" in str(refusal)  # noqa: PT017
        return
    assert 0 < kept < count
    assert kept % step == 0
    assert abs(kept - count * (1 - ratio)) <= step / 2


@given(st.integers(1, 6), st.integers(2, 30), st.integers(1, 200))
def test_a_size_is_exact_or_refused_with_its_neighbours(rows, count, size):
    try:
        kept = Amount(size=size).kept((rows, count), "a group")
    except CompressError as refusal:
        assert size % rows or size > rows * count
        assert "nearest sizes" in str(refusal) or "more than" in str(refusal)  # noqa: PT017
        return
    assert kept * rows == size


def test_a_ratio_of_zero_removes_nothing_and_is_no_error():
    assert Amount(ratio=0).kept((3, 7), "a group") == 7
