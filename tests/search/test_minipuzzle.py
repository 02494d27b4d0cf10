"""MiniPuzzle: candidates have the figures that were counted, keep what scores highest, and are ranked by what they say.

The truth is `fxcompress.apply` with a recipe's passes, and the eager model of transformers.
"""

from __future__ import annotations

import functools

import pytest
import torch

import fxcompress
from fxcompress import CompressError
from fxcompress.gather import gather
from fxcompress.layer_scores import importance
from fxcompress.memory import Footprint
from fxcompress.plan import Step
from fxcompress.recipe import Recipe
from fxcompress.searching import minipuzzle as module
from fxcompress.searching.accuracy import Accuracy, accuracy, greedy
from fxcompress.searching.budget import Budget
from fxcompress.searching.minipuzzle import Ranked, minipuzzle
from fxcompress.searching.subblocks import KINDS, footprint, subblocks
from tests import models

IDS, MASK = models.left_padded(3, 12)
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]
BYTES = "bytes<=300KB at context=100, cache=fp8"
GRID = {"layers": {"ssm": [1, 2], "attention": [0, 1], "ffn": [1]}, "ffn": [40, 80]}


def hybrid() -> fxcompress.Program:
    return models.captured("nemotron_h", torch.float32)


@functools.cache
def found() -> tuple[Ranked, ...]:
    return tuple(minipuzzle(hybrid(), BYTES, BATCHES, best=9, trials=9, **GRID))


def check_recipe(one: Ranked) -> None:
    """Pass after pass with its proofs gives what one step for all of them gave when the candidate was ranked."""
    small = fxcompress.apply(hybrid(), one.candidate.recipe.passes(), calibration=BATCHES).program
    count, budget = Footprint.of(small), Budget.parse(BYTES)
    assert one.candidate.parameters == count.parameters
    assert one.candidate.figures == {budget: budget.value(count)}
    assert one.accuracy == accuracy(small, BATCHES, greedy(hybrid(), BATCHES))


def test_a_recipe_gives_the_very_model_that_was_counted_and_ranked():
    check_recipe(found()[0])


@pytest.mark.slow
def test_all_recipes_give_the_very_models_that_were_counted_and_ranked():
    for one in found():
        check_recipe(one)


def test_every_combination_that_keeps_the_budget_is_tried():
    sizes = [tuple(one.candidate.sizes.values()) for one in found()]
    grid = [(a, 1, s, w) for a in (0, 1) for s in (1, 2) for w in (40, 80)]
    assert sorted(sizes) == grid
    assert [one.accuracy.mean for one in found()] == sorted((one.accuracy.mean for one in found()), reverse=True)


def test_what_breaks_the_budget_is_not_tried():
    figures = sorted(next(iter(one.candidate.figures.values())) for one in found())
    tight = BYTES.replace("300KB", f"{figures[3]}B")
    kept = minipuzzle(hybrid(), tight, BATCHES, best=9, trials=9, **GRID)
    assert sorted(next(iter(one.candidate.figures.values())) for one in kept) == figures[:4]


def test_the_layers_that_stay_are_those_that_matter_most():
    program = hybrid()
    blocks = subblocks(program)
    statistics = gather(program, [one.skip_watch(program) for one in blocks], BATCHES)
    value = {one.path: importance(program, (one.path,), "hidden", statistics) for one in blocks}
    for one in found():
        gone = {path for p in one.candidate.recipe.steps for path in getattr(p, "layers", "") if path in value}
        for kind in KINDS:
            stay = [value[b.path] for b in blocks if b.kind == kind and b.path not in gone]
            lost = [value[b.path] for b in blocks if b.kind == kind and b.path in gone]
            assert len(stay) == one.candidate.sizes[kind]
            assert not stay or not lost or min(stay) >= max(lost)


def test_layers_of_a_transformer_lose_attention_and_ffn_apart():
    program = models.captured("llama", torch.float32)
    grid = {"layers": {"attention": [2], "ffn": [1]}, "ffn": [80]}
    (one,) = minipuzzle(program, "parameters<=1M", BATCHES, best=1, trials=1, **grid)
    small = fxcompress.apply(program, one.candidate.recipe.passes(), calibration=BATCHES).program
    assert [block.kind for block in subblocks(small)].count("ffn") == 1
    assert [block.kind for block in subblocks(small)].count("attention") == 2
    assert one.candidate.recipe.passes()[-1].name == "RemoveLayers"  # the width is the model's own: nothing is cut


def test_accuracy_and_agreement_are_what_the_eager_models_say():
    model = models.tiny("llama")
    small = fxcompress.apply(model, [fxcompress.passes.PruneFFN(ratio=0.5)])
    with torch.no_grad():
        ours, parents = (m(**BATCHES[0]).logits[:, :-1].argmax(-1) for m in (small, model))
    follows = (MASK[:, 1:] & MASK[:, :-1]).bool()
    expected = Accuracy(
        (ours == IDS[:, 1:])[follows].double().mean().item(), (ours == parents)[follows].double().mean().item()
    )
    found = accuracy(small.program, BATCHES, greedy(models.captured("llama", torch.float32), BATCHES))
    assert found == expected
    assert 0 < found.agreement < 1


def test_padding_is_not_counted_and_a_model_agrees_with_itself():
    program = models.captured("llama", torch.float32)
    rows = [{"input_ids": row[mask.bool()][None]} for row, mask in zip(IDS, MASK, strict=True)]
    together = accuracy(program, BATCHES, greedy(program, BATCHES))
    assert together == accuracy(program, rows, greedy(program, rows))
    assert together.agreement == 1


def test_a_recipe_is_text_and_the_model_is_left_alone():
    before = footprint(hybrid(), Step("", {}))
    for one in found():
        assert Recipe.from_yaml(one.candidate.recipe.to_yaml()).steps == one.candidate.recipe.steps
    assert footprint(hybrid(), Step("", {})) == before


def test_the_model_as_it_is_is_no_candidate():
    for one in minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers={"ssm": [1, 2]}, ffn=[80], trials=99, best=99):
        assert one.candidate.recipe.steps
    same = {"ssm": [2], "attention": [1], "ffn": [2]}
    with pytest.raises(CompressError, match="the sizes of the model as it is and no others"):
        minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers=same, ffn=[80])


def test_all_layers_never_go():
    none = {"ssm": [0, 1], "attention": [0], "ffn": [0]}
    found = minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers=none, ffn=[80])
    assert [one.candidate.sizes["ssm"] for one in found] == [1]


@pytest.mark.parametrize(
    ("budget", "options", "said"),
    [
        ("parameters<=1K", {}, "nothing in the grid keeps the budget; the closest, attention=0, ffn=1, ssm=1"),
        ("latency<=1ms at prompt=1, new=1", {}, "is measured"),
        ("parameters<=1M", {"layers": {"ssm": [3]}}, r"\[3\] of 'ssm' cannot stay; the model has 1 attention, 2 ffn"),
        ("parameters<=1M", {"layers": {"moe": [1]}}, "of 'moe'"),
        ("parameters<=1M", {"ffn": [81]}, "ffn: 81 is not between"),
        ("parameters<=1M", {"best": 5, "trials": 4}, "no more than are tried"),
    ],
)
def test_what_cannot_be_found_is_refused(budget, options, said):
    with pytest.raises(CompressError, match=said):
        minipuzzle(hybrid(), budget, BATCHES, **{**GRID, **options})


def test_without_values_nothing_is_scored():
    with pytest.raises(CompressError, match="nothing to score"):
        minipuzzle(hybrid().on_device(torch.device("meta")), "parameters<=1M", BATCHES)


# Planted faults: the laws can fail.


def test_layers_that_are_counted_but_stay_show_in_the_figures(monkeypatch):
    monkeypatch.setattr(module, "footprint", lambda program, step: footprint(program, Step("", step.keep)))
    one = minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers={"ssm": [1]}, ffn=[40], best=1)[0]
    small = fxcompress.apply(hybrid(), one.candidate.recipe.passes(), calibration=BATCHES)
    assert one.candidate.parameters != Footprint.of(small.program).parameters


def test_layers_in_the_wrong_order_show_in_what_stays(monkeypatch):
    right = minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers={"ssm": [1]}, ffn=[80], best=1, trials=1)
    monkeypatch.setattr(module, "importance", lambda *given: -importance(*given))
    wrong = minipuzzle(hybrid(), "parameters<=1M", BATCHES, layers={"ssm": [1]}, ffn=[80], best=1, trials=1)
    assert right[0].candidate.recipe.steps != wrong[0].candidate.recipe.steps
