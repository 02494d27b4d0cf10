"""What is proposed can be cut, keeps the budgets, and has the very figures that were predicted: the law of the search.

The truth is the rewrite: the passes of a candidate run on the model without values, and the result is counted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from fxcompress import CompressError, Program, capture
from fxcompress.memory import Footprint
from fxcompress.pipeline import Pipeline
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.candidates import Candidate, Candidates, candidates
from fxcompress.searching.choices import open_space
from fxcompress.searching.depth import stack
from fxcompress.searching.predict import Predictor
from fxcompress.searching.space import Choices, Space
from tests import models
from tests.recipes.published import PUBLISHED, original_sizes, total

LOADS = (
    "parameters",
    "non_embedding",
    "weights",
    "bytes at batch=3, context=17",
    "bytes at context=100, cache=fp8, weights=4.5",
)


@functools.cache
def on_meta(name: str) -> Program:
    return models.captured(name, torch.float32).on_device(torch.device("meta"))


def from_the_back(program: Program) -> tuple[int, ...]:
    """An order of layers in which the last one stays."""
    count = len(stack(program))
    return (*range(count - 2, -1, -1), *range(count - 1, count)) if count else ()


@functools.cache
def whole_space(name: str) -> Space:
    return open_space(on_meta(name), None, from_the_back(on_meta(name)))


def rewritten(name: str, space: Space, candidate: Candidate) -> Footprint:
    """What is counted when the candidate's passes have really run."""
    return Footprint.of(Pipeline(space.passes(candidate.sizes, "magnitude"), verify=False).run(on_meta(name)))


def predicted(name: str, space: Space, candidate: Candidate) -> Footprint:
    sizes = {axis: np.array([size]) for axis, size in candidate.sizes.items()}
    layers = candidate.sizes.get("layers", len(space.layer_order))
    return Predictor(on_meta(name), space).footprint(layers, sizes).map(lambda count: int(count.flat[0]))


def without_nothing(count: Footprint) -> dict[str, dict]:
    """Dtypes of which nothing is left say nothing."""
    return {part: {dtype: n for dtype, n in held.items() if n} for part, held in vars(count).items()}


@st.composite
def budget_texts(draw: st.DrawFn, count: Footprint) -> list[str]:
    """Upper bounds that ask for between a third and nearly all of what the model has."""
    texts = []
    for load in draw(st.lists(st.sampled_from(LOADS), min_size=1, max_size=3, unique=True)):
        figure, _, conditions = load.partition(" at ")
        at = f" at {conditions}" if conditions else ""
        unit = "" if figure in ("parameters", "non_embedding") else "B"
        whole = Budget.parse(f"{figure}<=1{unit}{at}").value(count)
        texts.append(f"{figure}<={int(whole * draw(st.floats(0.35, 0.99)))}{unit}{at}")
    return texts


def proposed(name: str, budgets: tuple[Budget, ...]) -> Candidates | None:
    """None where all bounds together leave nothing."""
    try:
        return candidates(on_meta(name), whole_space(name), budgets)
    except CompressError:
        return None


def check(name: str, data: st.DataObject) -> None:
    space = whole_space(name)
    budgets = budgets_of(data.draw(budget_texts(Footprint.of(on_meta(name)))))
    found = proposed(name, budgets)
    assume(found is not None)
    candidate = found[data.draw(st.integers(0, len(found) - 1))]
    real = rewritten(name, space, candidate)
    assert without_nothing(predicted(name, space, candidate)) == without_nothing(real)
    assert candidate.parameters == real.parameters
    for budget in budgets:
        assert candidate.figures[budget] == budget.value(real)
        assert budget.allows(budget.value(real))


@given(data=st.data())
@settings(max_examples=3)
def test_a_candidate_has_the_figures_that_were_predicted(data: st.DataObject):
    check("nemotron_h", data)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=5)
@pytest.mark.parametrize("name", models.ALL)
def test_a_candidate_of_any_family_has_the_figures_that_were_predicted(name: str, data: st.DataObject):
    check(name, data)


def test_nothing_that_keeps_the_budget_is_left_out_and_the_largest_come_first():
    program = on_meta("llama")
    space = open_space(program, {"ffn": [40, 80], "width": [24, 48], "layers": [2, 3]}, from_the_back(program))
    counts = {}
    for ffn, width, layers in itertools.product([40, 80], [24, 48], [2, 3]):
        sizes = {"ffn": ffn, "width": width, "layers": layers}
        counts[str(Candidate(sizes, 0, {}))] = rewritten("llama", space, Candidate(sizes, 0, {})).parameters
    limit = sorted(counts.values())[5]
    found = candidates(program, space, budgets_of(f"parameters<={limit}"))
    assert {str(c): c.parameters for c in found} == {text: n for text, n in counts.items() if n <= limit}
    assert [c.parameters for c in found] == sorted((c.parameters for c in found), reverse=True)


def test_an_order_of_layers_of_ones_own_decides_what_their_number_leaves():
    program = on_meta("nemotron_h")  # mamba, mlp, mamba, attention, mlp
    left = {}
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0)):
        space = open_space(program, {"layers": [2]}, order)
        (candidate,) = candidates(program, space, budgets_of("parameters<=1M"))
        left[order] = candidate.parameters
        assert candidate.parameters == rewritten("nemotron_h", space, candidate).parameters
    assert len(set(left.values())) == 2


@pytest.mark.slow
def test_the_published_sizes_of_a_hybrid_have_the_published_parameters():
    """Nemotron-H 8B to 4B (Minitron-SSM, arXiv 2504.11409), by a formula that knows nothing of the library."""
    wanted = PUBLISHED["minitron-ssm"]
    config = AutoConfig.for_model(**original_sizes(wanted.original))
    with torch.device("meta"):
        program = capture(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
    space = open_space(program, {"width": None, "ffn": None, "ssm_heads": None}, ())
    found = candidates(program, space, budgets_of(["parameters<=4.5B", "parameters>=4.2B"]))
    sizes = {"ssm_heads": 112, "ffn": 12288, "width": 3072}
    (candidate,) = [c for c in found if c.sizes == sizes]
    assert candidate.parameters == total(wanted.sizes)


def test_the_model_as_it_is_is_no_candidate():
    program = on_meta("llama")
    space = open_space(program, {"ffn": [40, 80]}, ())
    assert [c.sizes for c in candidates(program, space, budgets_of("parameters<=1B"))] == [{"ffn": 40}]
    with pytest.raises(CompressError, match="the sizes of the model as it is and no others"):
        candidates(program, open_space(program, {"ffn": [80]}, ()), budgets_of("parameters<=1B"))


def test_a_budget_that_nothing_keeps_names_the_closest():
    program = on_meta("llama")
    space = open_space(program, {"ffn": (40, 80, 4), "width": [24, 48]}, ())
    smallest = rewritten("llama", space, Candidate({"ffn": 40, "width": 24}, 0, {})).parameters
    with pytest.raises(CompressError) as refusal:
        candidates(program, space, budgets_of("parameters<=1K"))
    said = Budget.parse("parameters<=1K").said(smallest)
    assert str(refusal.value) == (
        f"no candidate keeps the budget; the closest, ffn=40, width=24, has {said} for parameters<=1K"
    )


def test_budgets_that_leave_nothing_together_name_what_is_broken():
    program = on_meta("llama")
    whole = Footprint.of(program).parameters
    space = open_space(program, {"ffn": [40, 80]}, ())
    budgets = budgets_of([f"parameters>={whole}", "weights<=1GB"])
    with pytest.raises(CompressError, match=f"for {budgets[0]}$"):
        candidates(program, space, budgets)


def test_a_space_without_end_is_refused_before_it_is_counted():
    program = on_meta("nemotron_h")
    fine = {"width": (1, 48, 1), "ffn": (1, 80, 1), "ssm_channels": (1, 10, 1), "ssm_heads": None, "layers": (1, 5, 1)}
    space = open_space(program, {**fine, "query_heads": [2, 4, 6]}, from_the_back(program))
    assert len(space) < 4194304  # the tiny model has no more
    huge = dataclasses.replace(space, choices=(*space.choices, *space.choices))
    with pytest.raises(CompressError, match="combinations; 4,194,304 are counted: take larger steps"):
        candidates(program, huge, budgets_of("parameters<=1K"))


# Planted faults: the law can fail.


@pytest.mark.parametrize(
    "fault",
    [
        lambda axis, size: axis.original if axis.name == "ssm_heads" else size // axis.step,  # heads forgotten
        lambda axis, size: size if axis.name == "query_heads" else size // axis.step,  # rows counted twice
    ],
)
def test_a_wrong_size_shows_in_the_figures(fault, monkeypatch):
    program = on_meta("nemotron_h")
    space = open_space(program, {"ssm_heads": [6], "query_heads": [4]}, ())
    (candidate,) = candidates(program, space, budgets_of("parameters<=1B"))
    real = rewritten("nemotron_h", space, candidate)
    assert predicted("nemotron_h", space, candidate) == real
    monkeypatch.setattr(Choices, "count", fault)
    assert predicted("nemotron_h", space, candidate) != real


def test_layers_that_are_forgotten_show_in_the_figures(monkeypatch):
    program = on_meta("llama")
    space = open_space(program, {"layers": [2]}, from_the_back(program))
    (candidate,) = candidates(program, space, budgets_of("parameters<=1B"))
    real = rewritten("llama", space, candidate)
    monkeypatch.setattr(Space, "removed", lambda self, layers: ())
    assert predicted("llama", space, candidate) != real
