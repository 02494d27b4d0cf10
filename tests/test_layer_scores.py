"""Importance of layers against the eager model of transformers with layers really taken out of its list."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fxcompress
from fxcompress import CompressError, capture
from fxcompress.batches import batches_of
from fxcompress.gather import gather
from fxcompress.layer_scores import importance, watch_of, windows
from fxcompress.passes import PruneFFN, RemoveLayers
from fxcompress.recipe import Recipe
from tests import models

IDS, MASK = models.left_padded(3, 12)
BATCH = {"input_ids": IDS, "attention_mask": MASK}
LISTS = {"llama": "model.layers", "mamba2": "backbone.layers", "nemotron_h": "model.layers"}
COUNTS = (MASK[:, 1:] & MASK[:, :-1]).bool()


def tiny(name):
    """In float64 where the model computes in it: mamba2's residual stream is float32 whatever its weights are."""
    return models.tiny(name) if name == "mamba2" else models.tiny(name).double()


def layers_of(model, name):
    return model.get_submodule(LISTS[name])


@torch.no_grad()
def outputs(model):
    """Logits and last hidden state at the tokens that predict a next one."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    logits = model(**BATCH, use_cache=False).logits
    hook.remove()
    return logits[:, :-1][COUNTS], seen[0][:, :-1][COUNTS]


def without(name, gone):
    """The model of that name with some items of its list of layers skipped."""
    model = tiny(name)
    kept = [layer for i, layer in enumerate(layers_of(model, name)) if i not in gone]
    layers_of(model, name)._modules = {str(i): layer for i, layer in enumerate(kept)}
    if hasattr(model.config, "layers_block_type"):
        kinds = model.config.layers_block_type
        model.config.layers_block_type = [kind for i, kind in enumerate(kinds) if i not in gone]
    model.config.num_hidden_layers = len(kept)
    return model


def eager(name, gone):
    (whole, before), (part, after) = outputs(tiny(name)), outputs(without(name, gone))
    labels = IDS[:, 1:][COUNTS]
    kl = (whole.softmax(-1) * (whole.log_softmax(-1) - part.log_softmax(-1))).sum(-1).mean()
    return {
        "loss": F.cross_entropy(part, labels).item(),
        "kl": kl.item(),
        "hidden": (after - before).square().mean().item(),
    }


def ours(name, window, scores=("loss", "kl", "hidden", "cosine"), batches=(BATCH,)):
    program = capture(tiny(name))
    watches = [watch_of(program, window, score) for score in scores]
    statistics = gather(program, list(dict.fromkeys(watches)), batches_of(list(batches)))
    return {score: importance(program, window, score, statistics) for score in scores}


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("name", LISTS)
def test_a_layer_left_out_costs_what_the_model_without_it_says(name, gone):
    found = ours(name, tuple(f"{LISTS[name]}.{i}" for i in gone))
    for score, value in eager(name, gone).items():
        assert found[score] == pytest.approx(value, rel=1e-3 if name == "mamba2" else 1e-5), score


def test_block_importance_is_one_minus_the_cosine_of_what_goes_in_and_comes_out():
    model = models.tiny("llama").double()
    seen = []
    layer = layers_of(model, "llama")[1]
    hooks = [layer.register_forward_pre_hook(lambda _, x: seen.append(x[0]))]
    hooks += [layer.register_forward_hook(lambda _, x, y: seen.append(y[0] if isinstance(y, tuple) else y))]
    with torch.no_grad():
        model(**BATCH, use_cache=False)
    [hook.remove() for hook in hooks]
    x, y = (value[MASK.bool()] for value in seen)
    expected = 1 - F.cosine_similarity(x, y, dim=-1).mean().item()
    assert ours("llama", ("model.layers.1",), ("cosine",))["cosine"] == pytest.approx(expected, rel=1e-9)


def test_layer_scores_do_not_depend_on_how_sequences_are_batched():
    rows = [{"input_ids": row[mask.bool()][None]} for row, mask in zip(IDS, MASK, strict=True)]
    together, apart = ours("nemotron_h", ("model.layers.1",)), ours("nemotron_h", ("model.layers.1",), batches=rows)
    assert together == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("score", ["cosine", "loss", "kl", "hidden"])
def test_the_layers_that_matter_least_go(score):
    model = models.tiny("llama").double()
    small = fxcompress.apply(model, [RemoveLayers(count=1, score=score)], calibration=[BATCH])
    paths = [f"model.layers.{i}" for i in range(len(model.model.layers))]
    found = {path: ours("llama", (path,), (score,))[score] for path in paths}
    assert small.steps[0].remove == (min(found, key=found.__getitem__),)
    assert len(small.steps[0].remove) == 1


def test_a_run_of_layers_goes_together():
    program = capture(models.tiny("nemotron_h").double())
    p = RemoveLayers(count=2, score="kl", contiguous=True)
    small = fxcompress.apply(program, [p], calibration=[BATCH])
    paths = [f"model.layers.{i}" for i in range(len(program.layers()["model.layers"]))]
    found = {window: ours("nemotron_h", window, ("kl",))["kl"] for window in windows(paths, 2)}
    assert small.steps[0].remove == min(found, key=found.__getitem__)


def test_a_task_of_ones_own_scores_the_rewritten_program():
    asked = []

    def scorer(program):
        asked.append(program)
        return float(len(asked))  # the later, the better: the first run goes

    small = fxcompress.apply(models.captured("llama"), [RemoveLayers(count=1, score=scorer)])
    assert small.steps[0].remove == ("model.layers.0",)
    assert all(not any("model.layers.0." in name for name in program.used_names()) for program in asked[:1])


def test_only_layers_that_are_named_or_have_the_part_are_chosen_among():
    model = models.tiny("llama").double()
    small = fxcompress.apply(model, [RemoveLayers(count=1, layers=(1,))], calibration=[BATCH])
    assert small.steps[0].remove == ("model.layers.1",)
    small = fxcompress.apply(model, [RemoveLayers(count=1, part="ffn", score="kl")], calibration=[BATCH])
    assert small.steps[0].remove[0].endswith(".mlp")


def test_layers_are_scored_before_neurons_are_cut():
    """One sweep over the original: the order of the passes does not change which layer goes."""
    layer, neurons = RemoveLayers(count=1, score="loss"), PruneFFN(ratio=0.5, score="activation")
    first = fxcompress.apply(models.tiny("llama").double(), [layer, neurons], calibration=[BATCH])
    last = fxcompress.apply(models.tiny("llama").double(), [neurons, layer], calibration=[BATCH])
    assert first.steps[0].remove == last.steps[1].remove


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RemoveLayers(), "needs layers="),
        (lambda: RemoveLayers(count=0), "count=0 removes nothing"),
        (lambda: RemoveLayers(count=1, score="magic"), "there are cosine, loss, kl, hidden"),
        (lambda: RemoveLayers(layers=(1,), contiguous=True), "say how many by count="),
        (lambda: Recipe.parse_pass("RemoveLayers(count=1, score='magic')"), "there are cosine, loss, kl, hidden"),
    ],
)
def test_contradictory_requests_are_refused(make, said):
    with pytest.raises(CompressError, match=said):
        make()


def test_what_cannot_be_chosen_is_refused():
    program = models.captured("llama")
    for p, said in [
        (RemoveLayers(count=9), "count=9 would leave none"),
        (RemoveLayers(count=2, layers=(0,)), "count=2 of 1 layers to choose among"),
        (RemoveLayers(count=1, part="ssm"), "RemoveLayers: .* has no ssm"),
        (RemoveLayers(count=1), "pass calibration="),
    ]:
        with pytest.raises(CompressError, match=said):
            fxcompress.apply(program, [p])


def test_the_text_of_a_recipe_says_how_layers_are_chosen():
    p = Recipe.parse_pass("RemoveLayers(count=2, score='hidden', contiguous=True)")
    assert p == RemoveLayers(count=2, score="hidden", contiguous=True)
    assert Recipe.from_yaml(Recipe((p,)).to_yaml()).steps == (p,)
