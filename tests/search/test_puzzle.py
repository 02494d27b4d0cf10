"""Puzzle: the integer program against all combinations, costs against the rewrite, results against what they say."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fxcompress
from fxcompress import CompressError, capture, puzzle
from fxcompress.gather import gather
from fxcompress.memory import Footprint
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.progress import silent
from fxcompress.recipe import Recipe
from fxcompress.rewrite import rewrite
from fxcompress.searching import assignment, library
from fxcompress.searching.assignment import Bound, assign
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.found import Found
from fxcompress.searching.layered import Candidate
from fxcompress.searching.library import CUTS, Costed, costed, options
from fxcompress.searching.loss import zero_shot_loss
from fxcompress.searching.puzzle import Puzzle
from fxcompress.searching.subblocks import Decisions, footprint, subblocks
from fxcompress.shifts import Shifts
from fxcompress.statistics import Statistics
from tests import models

IDS, MASK = models.left_padded(3, 12)
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]
ALL = dict.fromkeys(CUTS)


def program(name: str = "nemotron_h") -> fxcompress.Program:
    return models.captured(name, torch.float32)


@functools.cache
def costed_library(name: str = "nemotron_h") -> tuple[tuple[Costed, ...], ...]:
    """Every choice of every subblock, with scores that need no calibration."""
    decisions = Decisions(program(name), Statistics())
    blocks = subblocks(program(name))
    return tuple(tuple(costed(decisions, options(program(name), block, ALL, "magnitude"))) for block in blocks)


def together(chosen: tuple[Costed, ...]) -> Step:
    keep = {key: index for one in chosen for key, index in one.step.keep.items()}
    return Step("together", keep, tuple(path for one in chosen for path in one.step.remove))


# The integer program.


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[Bound]]:
    """A few layers with a few choices each, with one to three bounds that some combinations keep and some do not."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def numbers(of: st.SearchStrategy) -> list[list]:
        return [draw(st.lists(of, min_size=n, max_size=n)) for n in shape]

    scores = numbers(st.floats(0, 1))
    bounds = []
    for _ in range(draw(st.integers(1, 3))):
        costs = numbers(st.integers(-(10**11), 10**6))
        bounds.append(Bound(costs, draw(st.integers(sum(map(min, costs)), sum(map(max, costs))))))
    return scores, bounds


def total(scores: list[list[float]], chosen: tuple[int, ...]) -> float:
    return sum(layer[c] for layer, c in zip(scores, chosen, strict=True))


def keepers(scores: list[list[float]], bounds: list[Bound]) -> Iterator[tuple[int, ...]]:
    """All combinations that keep every bound."""
    for chosen in itertools.product(*(range(len(layer)) for layer in scores)):
        if all(total(bound.costs, chosen) <= bound.limit for bound in bounds):
            yield chosen


@given(problem=problems())
def test_the_choice_is_the_best_of_all_combinations(problem):
    scores, bounds = problem
    best = min((total(scores, chosen) for chosen in keepers(scores, bounds)), default=None)
    chosen = assign(scores, bounds)
    if best is None:
        assert chosen is None
    else:
        assert chosen in set(keepers(scores, bounds))
        assert total(scores, chosen) == pytest.approx(best, rel=1e-6, abs=1e-8)


@given(problem=problems(), apart=st.integers(1, 3))
def test_solutions_differ_in_as_many_layers_as_asked_and_none_is_left_out(problem, apart):
    scores, bounds = problem
    found: list[tuple[int, ...]] = []
    while len(found) < 5 and (chosen := assign(scores, bounds, [(one, apart) for one in found])) is not None:
        assert all(sum(a != b for a, b in zip(chosen, other, strict=True)) >= apart for other in found)
        found.append(chosen)
    sums = [total(scores, chosen) for chosen in found]
    assert sums == pytest.approx(sorted(sums), abs=1e-8)
    if apart == 1:
        assert len(found) == min(5, sum(1 for _ in keepers(scores, bounds)))


def test_a_limit_is_kept_to_the_last_byte():
    """Far below what the solver's tolerance sees."""
    costs = [[0, -(10**12)], [0, -(10**12) + 1]]
    assert assign([[0, 1], [0, 0.5]], [Bound(costs, -(10**12))]) == (1, 0)
    assert assign([[0, 1], [0, 0.5]], [Bound(costs, -(10**12) + 1)]) == (0, 1)


def test_a_problem_that_the_presolve_gives_up_is_solved_all_the_same():
    """Found by random problems: HiGHS 1.12 ends these two with "Solve error"."""
    costs = [[0], [0, 0, 1], [18], [1000000], [0, 0, -95]]
    assert assign([[0.0] * len(layer) for layer in costs], [Bound(costs, 999923)]) in set(
        itertools.product([0], [0, 1, 2], [0], [0], [2])
    )
    infeasible = [Bound([[-83, -82], [1000000]], 999917), Bound([[68, -47767497169], [6]], -24082812828)]
    assert assign([[0.2, 0.0], [1.0]], infeasible) is None


# Costs.


def all_budgets() -> tuple[Budget, ...]:
    return budgets_of(["parameters<=1", "weights<=1B at weights=4.5", "bytes<=1B at batch=3, context=50, cache=fp8"])


def check_costs(name: str, seed: int) -> None:
    """What choices save alone adds up to what they save together, and the passes leave just that."""
    draw = random.Random(seed)
    chosen = tuple(draw.choice(several) for several in costed_library(name))
    if all(one.option.name == library.LEAVE_OUT for one in chosen):
        return
    small = program(name).clone()
    rewrite(small, together(chosen))
    before, after = footprint(program(name), Step("whole")), Footprint.of(small)
    assert footprint(program(name), together(chosen)).parameters == after.parameters
    for budget in all_budgets():
        predicted = budget.value(before) + sum(one.cost(budget) for one in chosen)
        slack = 0 if budget.figure == "parameters" else 3 * len(chosen)  # each part is rounded up to whole bytes
        assert budget.value(after) <= predicted <= budget.value(after) + slack


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "nemotron_h"])
def test_costs_of_single_choices_add_up_to_those_of_the_rewritten_model(name: str, seed: int):
    check_costs(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.ALL)
def test_costs_add_up_in_every_family_whose_layers_share_no_weights(name: str):
    for seed in range(4):
        check_costs(name, seed)


def test_a_lower_bound_is_rounded_to_its_own_side():
    (upper,), (lower,) = budgets_of("weights<=1B at weights=4.5"), budgets_of("weights>=1B at weights=4.5")
    ones = [one for several in costed_library() for one in several]
    assert all(one.cost(upper) - 1 <= one.cost(lower) <= one.cost(upper) for one in ones)
    assert any(one.cost(lower) != one.cost(upper) for one in ones)


def test_a_subblock_has_the_choices_of_its_kind_and_no_others():
    names = [[one.option.name for one in several] for several in costed_library()]
    mamba, ffn, _, attention, _ = names
    assert mamba == ["keep", "leave out", "ssm_heads=9", "ssm_heads=6", "ssm_heads=3"]
    assert ffn == ["keep", "leave out", "ffn=60", "ffn=40", "ffn=20"]
    assert attention == ["keep", "leave out", "query_heads=4", "query_heads=2", "kv_heads=1"]


def test_heads_that_are_query_and_kv_heads_at_once_are_cut_by_one_choice_only():
    block = next(block for block in subblocks(program("gpt2")) if block.kind == "attention")
    names = [one.name for one in options(program("gpt2"), block, ALL, "magnitude")]
    assert [name.partition("=")[0] for name in names if "=" in name].count("kv_heads") == 0
    assert any(name.startswith("query_heads") for name in names)


def test_sizes_that_a_layer_does_not_exceed_are_no_choice():
    block = next(block for block in subblocks(program()) if block.kind == "ffn")
    names = [one.name for one in options(program(), block, {"ffn": [80, 100, 33]}, "magnitude")]
    assert names == ["keep", "leave out", "ffn=33"]


def test_layers_that_share_weights_save_these_only_when_the_last_of_them_goes():
    """So a budget is kept all the more; and neither is cut, as that would cut the other."""
    model = models.tiny("llama")
    first, second = (model.model.layers[i].mlp for i in (0, 1))
    second.down_proj.weight = first.down_proj.weight
    tied = capture(model)
    blocks = [block for block in subblocks(tied) if block.kind == "ffn"][:2]
    assert [[o.name for o in options(tied, b, ALL, "magnitude")] for b in blocks] == [["keep", "leave out"]] * 2
    left_out = [costed(Decisions(tied, Statistics()), options(tied, b, {}, "magnitude"))[1] for b in blocks]
    both = footprint(tied, Step("both", remove=tuple(b.path for b in blocks))).parameters
    alone = footprint(tied, Step("whole")).parameters + sum(one.change.parameters for one in left_out)
    assert alone - both == first.down_proj.weight.numel()


# All of it.

LIMITS = ["parameters<=50K", "bytes<=210KB at context=64"]


def now(_: str, make: Any) -> Any:
    """A stage without a journal."""
    return make()


def solutions_of(budget: Any, space: Any = None, of: str = "nemotron_h", **options: Any) -> list[Candidate]:
    """What keeps the budget, from the least sum of scores on, not yet run as a whole."""
    asked = Puzzle(budgets=budgets_of(budget), space=space, **options)
    asked.check()
    return asked.candidates(program(of), BATCHES, now, silent)[2]


@functools.cache
def found() -> Found:
    return puzzle(program(), LIMITS, calibration=BATCHES, trials=3, best=1, apart=2)


def test_the_passes_give_the_model_that_was_counted_and_judged():
    (best,) = found().best
    small = fxcompress.apply(program(), best.passes, calibration=BATCHES).program
    count = Footprint.of(small)
    assert best.trial.parameters == count.parameters
    assert best.trial.figures == {str(budget): budget.value(count) for budget in budgets_of(LIMITS)}
    assert all(budget.allows(best.trial.figures[str(budget)]) for budget in budgets_of(LIMITS))
    assert best.trial.loss == zero_shot_loss(small, BATCHES)


def test_solutions_are_ranked_by_the_loss_that_they_have_and_not_by_the_sum_of_what_was_lost_alone():
    sums = [trial.scores["sum of kl"] for trial in found().trials]
    assert sums == sorted(sums)
    assert [trial.sizes["solution"] for trial in found().trials] == [1, 2, 3]
    assert found().best[0].trial.loss == min(trial.loss for trial in found().trials)
    assert {"sum of kl", "loss"} <= set(found().columns())


def test_the_best_is_proven():
    (best,) = found().best
    assert {law["pass"] for law in best.laws} == {p.name for p in best.passes}


def test_what_is_cut_to_one_size_is_cut_by_one_pass_as_each_alone_would_be():
    cut = [one for several in costed_library("llama") for one in several if one.option.name == "ffn=40"]
    (one,) = library.passes_of([c.option for c in cut])
    assert one.layers == tuple(c.option.subblock.path for c in cut)
    step, _ = one.decide(program("llama"), Statistics())
    assert {key: index.tolist() for key, index in step.keep.items()} == {
        key: index.tolist() for key, index in together(tuple(cut)).keep.items()
    }


def test_sizes_of_their_own_and_layers_that_go_are_passes_of_their_own():
    names = ("ffn=60", "leave out", "ffn=20")
    several = [s for s in costed_library("llama") if s[0].option.subblock.kind == "ffn"]
    chosen = [next(c.option for c in s if c.option.name == name) for s, name in zip(several, names, strict=True)]
    assert [p.name for p in library.passes_of(chosen)] == ["RemoveLayers", "PruneFFN", "PruneFFN"]


def test_solutions_differ_in_as_many_parts_as_asked():
    """Each pass names the layers, so that what differs can be read off the passes."""
    texts = [Recipe(one.passes).to_yaml() for one in solutions_of(LIMITS, trials=3, best=1, apart=2)]
    assert len(set(texts)) == 3


def test_the_score_is_the_sum_of_what_each_replacement_costs_alone():
    (one,) = solutions_of("parameters<=60K", {}, metric="hidden", trials=1, best=1)
    gone = [path for p in one.passes for path in p.decide(program(), Statistics())[0].remove]
    alone = Shifts(program(), [Step("", {}, (path,)) for path in gone]).sweep(BATCHES)
    assert gone
    assert one.scores["sum of hidden"] == pytest.approx(sum(float(s["hidden"] / s["count"]) for s in alone))


def test_a_roomier_budget_never_scores_worse():
    def of(limit: int) -> float:
        space = {"ffn": [40], "ssm_heads": [6]}
        return solutions_of(f"parameters<={limit}", space, trials=1, best=1)[0].scores["sum of kl"]

    assert of(70000) <= of(55000) <= of(40000)


def test_a_cache_that_is_too_large_costs_attention_and_not_neurons():
    (one,) = solutions_of("bytes<=1MB at context=100000", {"ffn": [40]}, trials=1, best=1)
    assert one.sizes == {"solution": 1, "attention_layers": 0, "ffn_layers": 2, "ssm_layers": 2, "cut": 0}


def test_weights_that_stay_in_their_files_give_the_same_choice(tmp_path):
    models.tiny("llama").save_pretrained(tmp_path)
    asked = {"budget": "parameters<=45K", "space": {"ffn": [40]}, "calibration": BATCHES, "trials": 1, "best": 1}
    from_files, in_memory = puzzle(tmp_path, **asked), puzzle(program("llama"), **asked)
    assert from_files.best[0].passes == in_memory.best[0].passes
    assert from_files.best[0].trial.loss == pytest.approx(in_memory.best[0].trial.loss, rel=1e-5)


def test_one_layer_stays_however_small_the_budget():
    with pytest.raises(CompressError) as refusal:
        solutions_of("parameters<=1K", of="mamba2")
    least = min(
        footprint(program("mamba2"), together(chosen)).parameters
        for chosen in itertools.product(*costed_library("mamba2"))
        if any(one.option.name != library.LEAVE_OUT for one in chosen)
    )
    said = Budget.parse("parameters<=1K").said(least)
    assert str(refusal.value) == f"no choice of layers keeps the budget: parameters<=1K can reach {said}"


@pytest.mark.parametrize(
    ("budget", "given", "said"),
    [
        ("parameters<=1M", {}, "the model as it is keeps parameters<=1M"),
        ("latency<=1ms at prompt=1, new=1", {}, "is measured"),
        (LIMITS, {"space": {"width": [24]}}, "there is no axis 'width'; there are ffn, query_heads"),
        (LIMITS, {"metric": "cosine"}, "there are kl, hidden"),
        (LIMITS, {"space": {"ffn": [0]}}, "positive whole numbers"),
        (LIMITS, {"space": {"ssm_heads": [7]}}, "size=7 is not feasible: 3 rows keep the same number"),
        (LIMITS, {"best": 0}, "best=0"),
        (LIMITS, {"apart": 0}, "1 or more subblocks apart"),
        (["parameters<=50K", "parameters>=49.999K"], {"space": {}}, "no choice of layers keeps the budget: parameters"),
    ],
)
def test_what_cannot_be_found_is_refused(budget, given, said):
    with pytest.raises(CompressError, match=said):
        puzzle(program(), budget, **{"calibration": BATCHES, **given})


@pytest.mark.slow
def test_the_winner_really_loses_less_than_most_of_what_keeps_the_budget():
    """Sums of scores ignore interactions; what they choose is measured against choices drawn at random."""
    budget = Budget.parse("parameters<=50K")
    (best,) = puzzle(program(), budget, calibration=BATCHES, trials=1, best=1).best
    step = Decisions(program(), gather_for(best.passes)).together(best.passes)
    draw, others = random.Random(0), []
    while len(others) < 40:
        other = together(tuple(draw.choice(choices) for choices in costed_library()))
        if 0.85 * best.trial.parameters <= footprint(program(), other).parameters <= budget.limit:
            others.append(other)
    kl = [float(sums["kl"]) for sums in Shifts(program(), [step, *others]).sweep(BATCHES)]
    assert sum(other < kl[0] for other in kl[1:]) <= 4


def gather_for(passes: tuple[Pass, ...]) -> Statistics:
    return gather(program(), [watch for p in passes for watch in p.watches(program())], BATCHES)


# Planted faults: the laws can fail.


def test_a_solver_that_ignores_a_bound_is_seen(monkeypatch):
    scores, bounds = [[0.0, 1.0], [0.0, 1.0]], [Bound([[2, 0], [2, 0]], 4), Bound([[1, 0], [1, 0]], 1)]
    assert assign(scores, bounds) in set(keepers(scores, bounds))
    whole = assignment._solve
    monkeypatch.setattr(assignment, "_solve", lambda scores, bounds, out: whole(scores, bounds[:1], []))
    monkeypatch.setattr(Bound, "allows", lambda self, chosen: True)
    assert assign(scores, bounds) not in set(keepers(scores, bounds))


def test_a_bound_that_the_solver_overlooks_is_found_when_the_costs_are_added_up(monkeypatch):
    scores, bounds = [[0.0, 1.0], [0.0, 1.0]], [Bound([[1, 0], [1, 0]], 1)]
    whole = assignment._solve
    monkeypatch.setattr(assignment, "_solve", lambda scores, bounds, out: whole(scores, [], out))
    assert assign(scores, bounds) in set(keepers(scores, bounds))


def test_costs_that_forget_the_cache_are_seen(monkeypatch):
    monkeypatch.setattr(library, "footprint", lambda p, step: Footprint(footprint(p, step).weights, {}, {}, {}))
    decisions = Decisions(program(), Statistics())
    found = costed(decisions, options(program(), subblocks(program())[3], ALL, "magnitude"))
    budget = all_budgets()[2]
    assert [one.cost(budget) for one in found] != [one.cost(budget) for one in costed_library()[3]]
