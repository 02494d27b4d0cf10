"""A detour gives what the rewritten program gives, and runs no more than what lies behind the change."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import torch

import fxcompress
from fxcompress import CompressError, detours, graph
from fxcompress.detours import Change, Detours
from fxcompress.gather import gather
from fxcompress.layer_scores import importance, watch_of
from fxcompress.plan import Step
from fxcompress.rewrite import cut_tensors, rewrite
from fxcompress.searching.library import CUTS, LEAVE_OUT, Costed, costed, options
from fxcompress.searching.subblocks import Decisions, subblocks
from fxcompress.searching.variant import Variant
from fxcompress.shifts import Reference, Shifts, ends
from fxcompress.statistics import Statistics
from tests import models

IDS, MASK = models.left_padded(3, 12)
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def program(name: str = "nemotron_h") -> fxcompress.Program:
    return models.captured(name, torch.float32)


@functools.cache
def choices(name: str = "nemotron_h") -> tuple[tuple[Costed, ...], ...]:
    """Every choice of every subblock, with scores that need no calibration."""
    decisions = Decisions(program(name), Statistics())
    blocks = subblocks(program(name))
    return tuple(tuple(costed(decisions, options(program(name), b, dict.fromkeys(CUTS), "magnitude"))) for b in blocks)


def drawn(name: str, seed: int) -> Step:
    """A choice for every subblock, not all of them left out."""
    draw = random.Random(seed)
    chosen = [draw.choice(several) for several in choices(name)]
    chosen[0] = choices(name)[0][0] if all(one.option.name == LEAVE_OUT for one in chosen) else chosen[0]
    keep = {key: index for one in chosen for key, index in one.step.keep.items()}
    return Step("drawn", keep, tuple(path for one in chosen for path in one.step.remove))


def rewritten(step: Step, name: str = "nemotron_h") -> fxcompress.Program:
    small = program(name).clone()
    rewrite(small, step)
    return small


@torch.no_grad()
def check(name: str, seed: int) -> None:
    step = drawn(name, seed)
    assert torch.equal(Variant(program(name), step)(**BATCH).logits, rewritten(step, name)(**BATCH).logits)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["llama", "nemotron_h"])
def test_a_variant_gives_the_very_logits_of_the_rewritten_program(name: str, seed: int):
    check(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.ALL if name not in ("opt", "zamba2")])
def test_variants_are_exact_in_every_family(name: str):
    for seed in range(3):
        check(name, seed)


@torch.no_grad()
def whole_run(step: Step) -> dict[str, float]:
    """What the rewritten program loses when all of it runs."""
    found = []
    for one in (program(), rewritten(step)):
        seen: dict = {}

        class Seeing(torch.fx.Interpreter):
            def run_node(self, n, seen=seen):
                seen[n] = super().run_node(n)
                return seen[n]

        Seeing(one.module).run(*one.bind(**BATCH))
        found.append([seen[end] for end in ends(one)])
    return means(Reference(BATCH, *found[0]).sums(*found[1]))


def means(sums) -> dict[str, float]:
    return {name: float(sums[name] / sums["count"]) for name in ("loss", "kl", "hidden")}


def test_what_steps_lose_alone_is_what_their_whole_runs_lose_in_any_order_of_steps():
    steps = [one.step for several in choices() for one in several[1:3]]
    random.Random(0).shuffle(steps)
    for found, step in zip(Shifts(program(), steps).sweep([BATCH]), steps, strict=True):
        assert means(found) == pytest.approx(whole_run(step), rel=1e-5, abs=1e-9)


def test_leaving_a_layer_out_loses_what_layer_scores_say():
    p = program("llama")
    paths = [block.path for block in subblocks(p)]
    found = Shifts(p, [Step("", {}, (path,)) for path in paths]).sweep([BATCH])
    watches = {path: watch_of(p, (path,), "kl") for path in paths}
    statistics = gather(p, watches.values(), [BATCH])
    for path, sums in zip(paths, found, strict=True):
        for score in ("kl", "hidden", "loss"):
            assert means(sums)[score] == importance(p, (path,), score, statistics)


def test_nothing_is_lost_by_a_step_that_changes_nothing():
    (found,) = Shifts(program(), [Step("nothing")]).sweep([BATCH])
    assert means(found)["kl"] == means(found)["hidden"] == 0


def test_what_comes_before_a_replaced_layer_is_not_run_again():
    last = subblocks(program())[-1].path
    step = next(one.step for one in choices()[-1] if one.option.name.startswith("ffn"))
    (detour,) = Detours(program(), [step], ends(program()))._detours
    layers = {path for node in detour.calls for path in graph.module_paths(node) if path.startswith("model.layers.")}
    assert detour.calls
    assert all(path == last or path.startswith(last + ".") for path in layers)


def test_the_program_as_it_is_runs_once_for_all_steps(monkeypatch):
    steps = [several[1].step for several in choices()]
    runs = Detours(program(), steps, ends(program()))
    first, real, seen = graph.calls(program().graph)[0], Detours.run_node, []
    monkeypatch.setattr(Detours, "run_node", lambda self, n: (seen.append(n), real(self, n))[1])
    assert len(list(runs.around(BATCH))) == len(steps)
    assert seen.count(first) == 1


def test_values_are_let_go_when_no_later_detour_needs_them():
    steps = [several[1].step for several in choices()]
    runs, sizes = Detours(program(), steps, ends(program())), []
    for _ in runs.around(BATCH):
        sizes.append(len(runs._kept))
    assert max(sizes) < len(set().union(*(detour.needs for detour in runs._detours)))
    assert not runs._kept


def test_the_program_and_its_tensors_are_left_alone():
    p = program()
    before = [(n.name, n.args, n.kwargs) for n in p.graph.nodes], dict(p.state)
    list(Detours(p, [drawn("nemotron_h", 1)], ends(p)).around(BATCH))
    assert [(n.name, n.args, n.kwargs) for n in p.graph.nodes] == before[0]
    assert all(tensor is p.state[name] for name, tensor in before[1].items())


def test_logits_that_are_not_finite_are_named_by_what_was_left_out():
    p = program("llama").map_state(lambda name, t: t * 1e38 if name.endswith("layers.1.mlp.up_proj.weight") else t)
    with pytest.raises(CompressError, match=r"the loss is not finite when model\.layers\.0\.mlp is cut or left out"):
        Shifts(p, [Step("", remove=("model.layers.0.mlp",))]).sweep([BATCH])


def test_a_module_that_is_no_block_is_no_detour():
    with pytest.raises(CompressError, match="cannot be removed"):
        Change.of(program("llama"), Step("", remove=("model.layers.0.mlp.up_proj",)))


# Planted faults: the laws can fail.


def test_a_weight_that_is_not_cut_shows(monkeypatch):
    monkeypatch.setattr(detours, "cut_tensors", lambda axes, keep: list(cut_tensors(axes, keep))[:-1])
    with pytest.raises((RuntimeError, AssertionError)):
        check("nemotron_h", 1)


def test_a_removed_module_that_still_adds_shows(monkeypatch):
    real = Change.of
    monkeypatch.setattr(Change, "of", lambda program, step: replace(real(program, step), instead={}))
    assert drawn("llama", 1).remove
    with pytest.raises(AssertionError):
        check("llama", 1)
