"""Budgets are text that is parsed and never evaluated; what means nothing, or contradicts itself, is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress import CompressError
from fxcompress.memory import Footprint, Precision
from fxcompress.searching.budget import CONDITIONS, Budget, budgets_of

BF16 = torch.bfloat16
COUNT = Footprint({BF16: 1000}, {BF16: 20}, {BF16: 4}, {torch.float32: 30}, {BF16: 300})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("parameters<=4.5B", Budget("parameters", 4.5e9)),
        ("parameters >= 350 M", Budget("parameters", 3.5e8, at_least=True)),
        ("weights<=8GB at weights=int4", Budget("weights", 8e9, precision=Precision(weights=4))),
        (
            "bytes<=24GiB at batch=8, context=32768, cache=fp8",
            Budget("bytes", 24 * 2**30, batch=8, context=32768, precision=Precision(cache=8)),
        ),
        ("latency<=20ms at batch=1, prompt=512, new=128", Budget("latency", 0.02, prompt=512, new=128)),
        ("throughput>=1000 at batch=4,prompt=512,new=9", Budget("throughput", 1000, True, 4, prompt=512, new=9)),
    ],
)
def test_text_and_budget_say_the_same(text: str, budget: Budget):
    assert Budget.parse(text) == budget
    assert Budget.parse(str(budget)) == budget


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    figure = draw(st.sampled_from(list(CONDITIONS)))
    known = CONDITIONS[figure]
    counts = {n: draw(st.integers(1, 10**6)) for n in ("batch", "context", "prompt", "new") if n in known}
    bits = {n: draw(st.sampled_from([None, 4.0, 4.5, 16.0])) for n in vars(Precision()) if n in known}
    limit = draw(st.floats(1e-3, 1e15))
    relative = figure in ("latency", "throughput") and draw(st.booleans())
    return Budget(figure, limit, draw(st.booleans()), precision=Precision(**bits), relative=relative, **counts)


@given(budgets())
def test_what_a_budget_is_written_as_is_read_as_itself(budget: Budget):
    assert Budget.parse(str(budget)) == budget


def test_figures_are_those_of_the_footprint():
    assert Budget.parse("parameters<=1K").value(COUNT) == 1000
    assert Budget.parse("non_embedding<=1K").value(COUNT) == 700
    assert Budget.parse("weights<=1KB at weights=fp4").value(COUNT) == 500
    assert Budget.parse("bytes<=1KB at batch=3, context=5").value(COUNT) == 2000 + 3 * (5 * 40 + 8 + 120)


def test_many_footprints_are_judged_at_once():
    budget = Budget.parse("weights<=1KB")
    values = budget.value(Footprint({BF16: np.array([400, 500, 501])}, {}, {}, {}))
    assert values.tolist() == [800, 1000, 1002]
    assert budget.allows(values).tolist() == [True, True, False]
    assert budget.excess(values).tolist() == [-0.2, 0.0, 0.002]


def test_a_lower_bound_is_kept_from_above():
    budget = Budget.parse("throughput>=100 at prompt=8, new=5, batch=2")
    assert budget.of_seconds(0.1, 0.2) == 100
    assert budget.allows(100)
    assert not budget.allows(99)
    assert budget.excess(50) == 0.5


def test_latency_is_in_seconds_whatever_the_batch():
    assert Budget.parse("latency<=1s at prompt=8, new=5, batch=2").of_seconds(0.1, 0.2) == 0.1


def test_a_multiple_is_of_what_the_original_has_and_not_of_seconds():
    latency = Budget.parse("latency<=0.8x at prompt=8, new=5, batch=2")
    throughput = Budget.parse("throughput>=1.25x at prompt=8, new=5")
    assert str(latency) == "latency<=0.8x at batch=2, prompt=8, new=5"
    assert Budget.parse(str(throughput)) == throughput
    for machine in (1, 7):  # a busy one slows both
        assert latency.allows(latency.of_seconds(0.7 * machine, 1.0 * machine))
        assert not latency.allows(latency.of_seconds(0.9 * machine, 1.0 * machine))
        assert throughput.allows(throughput.of_seconds(0.7 * machine, 1.0 * machine))
    assert latency.said(0.8125) == "0.812x"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no budget"),
        ("4.5B", "is no budget"),
        ("parameters<4B", "is no budget"),
        ("parameters<=4*10**9", "is no budget"),
        ("parameters<=nan", "is no budget"),
        ("parameters<=-3", "is no budget"),
        ("__import__('os')", "is no budget"),
        ("parameters<=0", "not a positive number"),
        ("flops<=3", "there is no budget in 'flops'; there are parameters"),
        ("parameters<=3GB", "unknown unit"),
        ("parameters<=0.5x", "unknown unit"),
        ("weights<=3", "has no unit; B, KB"),
        ("weights<=3B at batch=3", "weights has no condition 'batch'; it depends on weights"),
        ("parameters<=3B at batch=3", "it depends on none"),
        ("bytes<=3GB", "has to say at which context"),
        ("bytes<=3GB at context=1, context=2", "context is given twice"),
        ("bytes<=3GB at context=1.5", "no whole number"),
        ("bytes<=3GB at context", "'context' is no condition"),
        ("bytes<=3GB at context=9, cache=fp7", "'fp7' is neither"),
        ("bytes<=3GB at context=9, batch=0", "batch=0 has to be at least 1"),
        ("latency<=3ms at prompt=9", "has to say at which new"),
        ("throughput>=3 at prompt=9, new=0", "new=0 has to be at least 1"),
        (7, "is no budget"),
    ],
)
def test_what_is_no_budget_is_refused(text: str, why: str):
    with pytest.raises(CompressError, match=why):
        budgets_of([text])


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 0, -1])
def test_no_limit_is_refused(limit: float):
    with pytest.raises(CompressError, match="not a positive number"):
        Budget("parameters", limit)


@pytest.mark.parametrize("given", [[], {}, 7, None])
def test_no_budget_at_all_is_refused(given: object):
    with pytest.raises(CompressError, match="budget"):
        budgets_of(given)


def test_bounds_that_leave_nothing_contradict_each_other():
    with pytest.raises(CompressError, match="contradicts itself: parameters<=4B and parameters>=5B"):
        budgets_of(["parameters<=4B", "parameters>=5B"])


def test_two_bounds_of_one_kind_are_refused():
    with pytest.raises(CompressError, match="parameters<=4B and parameters<=5B: keep one"):
        budgets_of(["parameters<=4B", "parameters<=5B"])


def test_bounds_on_other_figures_or_at_other_loads_stand_side_by_side():
    texts = ["parameters<=4B", "parameters>=3.8B", "bytes<=9GB at context=1", "bytes<=12GB at context=4096"]
    assert [str(budget) for budget in budgets_of(texts)] == texts


def test_values_are_said_in_the_units_of_the_figure():
    assert Budget.parse("parameters<=4B").said(4_493_000_000) == "4.49B"
    assert Budget.parse("non_embedding<=4B").said(3_676_000_000) == "3.68B"
    assert Budget.parse("weights<=4GB").said(8_100_000_000) == "8.1 GB"
    assert Budget.parse("latency<=4s at prompt=1, new=1").said(0.0213) == "21.3 ms"
    assert Budget.parse("throughput>=4 at prompt=1, new=1").said(23456) == "23,456 tokens/s"
