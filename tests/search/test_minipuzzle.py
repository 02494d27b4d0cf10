"""MiniPuzzle: candidates have the figures that were counted, keep what scores highest, and are ranked by what they say.

The truth is `fxcompress.apply` with a recipe's passes, and the eager model of transformers.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch

import fxcompress
from fxcompress import CompressError, minipuzzle
from fxcompress.memory import Footprint
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.progress import silent
from fxcompress.recipe import Recipe
from fxcompress.searching.accuracy import Accuracy, accuracy, greedy
from fxcompress.searching.alone import losses_alone
from fxcompress.searching.budget import Budget, budgets_of
from fxcompress.searching.found import Found
from fxcompress.searching.layered import Candidate
from fxcompress.searching.minipuzzle import LAYERS, MiniPuzzle
from fxcompress.searching.subblocks import footprint, subblocks
from tests import models

module = sys.modules["fxcompress.searching.minipuzzle"]  # `fxcompress.minipuzzle` is the function

IDS, MASK = models.left_padded(3, 12)
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]
BYTES = "bytes<=300KB at context=100, cache=fp8"
GRID = {"ssm_layers": [1, 2], "attention_layers": [0, 1], "ffn_layers": [1], "ffn": [40, 80]}


def hybrid() -> fxcompress.Program:
    return models.captured("nemotron_h", torch.float32)


def now(_: str, make: Any) -> Any:
    """A stage without a journal."""
    return make()


def grid(budget: str = BYTES, space: Any = GRID, program: fxcompress.Program | None = None) -> list[Candidate]:
    """What keeps the budget, untried."""
    asked = MiniPuzzle(budgets=budgets_of(budget), space=space)
    return asked.candidates(program or hybrid(), BATCHES, now, silent)[2]


@functools.cache
def found() -> Found:
    return minipuzzle(hybrid(), BYTES, GRID, BATCHES, best=1, trials=9)


def applied(passes: tuple[Pass, ...], program: fxcompress.Program | None = None) -> fxcompress.Program:
    return fxcompress.apply(program or hybrid(), passes, calibration=BATCHES).program


def test_a_recipe_gives_the_very_model_that_was_counted_and_ranked():
    """Pass after pass with its proofs gives what was judged without a rewrite."""
    (best,) = found().best
    small, budget = applied(best.passes), Budget.parse(BYTES)
    assert best.trial.parameters == Footprint.of(small).parameters
    assert best.trial.figures == {str(budget): budget.value(Footprint.of(small))}
    really = accuracy(small, BATCHES, greedy(hybrid(), BATCHES))
    assert (best.trial.scores["accuracy"], best.trial.scores["agreement"]) == (really.accuracy, really.agreement)
    assert best.trial.loss == really.loss


@pytest.mark.slow
def test_all_candidates_are_the_very_models_that_were_counted():
    for one in grid():
        assert one.parameters == Footprint.of(applied(one.passes)).parameters


def test_every_combination_that_keeps_the_budget_is_tried_and_the_best_comes_first():
    sizes = [tuple(trial.sizes.values()) for trial in found().trials]
    assert sorted(sizes) == [(a, 1, s, w) for a in (0, 1) for s in (1, 2) for w in (40, 80)]
    means = [trial.scores["mean"] for trial in found().ranked]
    assert means == sorted(means, reverse=True)
    assert found().best[0].trial == found().ranked[0]


def test_the_best_is_proven():
    (best,) = found().best
    assert {law["pass"] for law in best.laws} == {p.name for p in best.passes}


def test_what_breaks_the_budget_is_no_candidate():
    figures = sorted(next(iter(one.figures.values())) for one in grid())
    kept = grid(BYTES.replace("300KB", f"{figures[3]}B"))
    assert sorted(next(iter(one.figures.values())) for one in kept) == figures[:4]


def test_the_layers_that_stay_are_those_that_matter_most():
    blocks = subblocks(hybrid())
    losses = losses_alone(hybrid(), [Step("", {}, (one.path,)) for one in blocks], BATCHES, now, silent)
    value = {block.path: found["hidden"] for block, found in zip(blocks, losses, strict=True)}
    for one in grid():
        gone = {path for p in one.passes for path in getattr(p, "layers", "") if path in value}
        for name, kind in LAYERS.items():
            stay = [value[b.path] for b in blocks if b.kind == kind and b.path not in gone]
            lost = [value[b.path] for b in blocks if b.kind == kind and b.path in gone]
            assert len(stay) == one.sizes[name]
            assert not stay or not lost or min(stay) >= max(lost)


def test_layers_of_a_transformer_lose_attention_and_ffn_apart():
    program = models.captured("llama", torch.float32)
    (one,) = grid("parameters<=1M", {"attention_layers": [2], "ffn_layers": [1]}, program)
    kinds = [block.kind for block in subblocks(applied(one.passes, program))]
    assert (kinds.count("ffn"), kinds.count("attention")) == (1, 2)


def test_an_axis_that_is_not_named_stays_as_it_is():
    (one,) = grid("parameters<=1M", {"ffn_layers": [1]})
    assert one.sizes == {"attention_layers": 1, "ffn_layers": 1, "ssm_layers": 2}
    assert [p.name for p in one.passes] == ["RemoveLayers"]


def test_accuracy_and_agreement_are_what_the_eager_models_say():
    model = models.tiny("llama")
    small = fxcompress.apply(model, [fxcompress.passes.PruneFFN(ratio=0.5)])
    with torch.no_grad():
        logits, parents = (m(**BATCHES[0]).logits[:, :-1] for m in (small, model))
    follows = (MASK[:, 1:] & MASK[:, :-1]).bool()
    ours = logits.argmax(-1)
    expected = Accuracy(
        (ours == IDS[:, 1:])[follows].double().mean().item(),
        (ours == parents.argmax(-1))[follows].double().mean().item(),
        torch.nn.functional.cross_entropy(logits[follows], IDS[:, 1:][follows]).item(),
    )
    found = accuracy(small.program, BATCHES, greedy(models.captured("llama", torch.float32), BATCHES))
    assert (found.accuracy, found.agreement) == (expected.accuracy, expected.agreement)
    assert found.loss == pytest.approx(expected.loss)
    assert 0 < found.agreement < 1


def test_padding_is_not_counted_and_a_model_agrees_with_itself():
    program = models.captured("llama", torch.float32)
    rows = [{"input_ids": row[mask.bool()][None]} for row, mask in zip(IDS, MASK, strict=True)]
    together, apart = (accuracy(program, batches, greedy(program, batches)) for batches in (BATCHES, rows))
    assert (together.accuracy, together.agreement) == (apart.accuracy, 1)


def test_a_recipe_is_text_and_the_model_is_left_alone():
    before = footprint(hybrid(), Step("", {}))
    assert tuple(Recipe.from_yaml(found().recipe(0)).steps) == found().best[0].passes
    assert footprint(hybrid(), Step("", {})) == before


def test_the_model_as_it_is_is_no_candidate():
    assert all(one.passes for one in grid("parameters<=1M", {"ssm_layers": [1, 2]}))
    with pytest.raises(CompressError, match="the sizes of the model as it is and no others"):
        grid("parameters<=1M", {"ssm_layers": [2], "ffn": [80]})


def test_all_layers_never_go():
    none = {"ssm_layers": [0, 1], "attention_layers": [0], "ffn_layers": [0]}
    assert [one.sizes["ssm_layers"] for one in grid("parameters<=1M", none)] == [1]


@pytest.mark.parametrize(
    ("budget", "space", "options", "said"),
    [
        ("parameters<=1K", GRID, {}, "nothing in the grid keeps the budget; the closest, attention_layers=0, ffn_lay"),
        ("latency<=1ms at prompt=1, new=1", GRID, {}, "is measured"),
        ("parameters<=1M", {"ssm_layers": [3]}, {}, r"ssm_layers: \[3\] cannot stay; the model has 1 attention_layers"),
        ("parameters<=1M", {"moe_layers": [1]}, {}, "there is no axis 'moe_layers'"),
        ("parameters<=1M", {"layers": [1]}, {}, "there is no axis 'layers'"),
        ("parameters<=1M", {"ffn": [81]}, {}, "ffn: 81 is not between"),
        ("parameters<=1M", {"ffn_layers": []}, {}, "has no size to choose from"),
        ("parameters<=1M", GRID, {"best": 5, "trials": 4}, "no more than are tried"),
    ],
)
def test_what_cannot_be_found_is_refused(budget, space, options, said):
    with pytest.raises(CompressError, match=said):
        minipuzzle(hybrid(), budget, space, BATCHES, **options)


def test_without_values_or_data_nothing_is_scored():
    with pytest.raises(CompressError, match="nothing to score"):
        minipuzzle(hybrid().on_device(torch.device("meta")), "parameters<=1M", calibration=BATCHES)
    with pytest.raises(CompressError, match="pass calibration="):
        minipuzzle(hybrid(), "parameters<=1M")


# Planted faults: the laws can fail.


def test_layers_that_are_counted_but_stay_show_in_the_figures(monkeypatch):
    monkeypatch.setattr(module, "footprint", lambda program, step: footprint(program, Step("", step.keep)))
    (one,) = grid("parameters<=1M", {"ssm_layers": [1], "ffn": [40]})
    assert one.parameters != Footprint.of(applied(one.passes)).parameters


def test_layers_in_the_wrong_order_show_in_what_stays(monkeypatch):
    (right,) = grid("parameters<=1M", {"ssm_layers": [1]})

    def reversed_losses(*given):
        return [{"hidden": -found["hidden"]} for found in losses_alone(*given)]

    monkeypatch.setattr(module, "losses_alone", reversed_losses)
    assert grid("parameters<=1M", {"ssm_layers": [1]})[0].passes != right.passes
