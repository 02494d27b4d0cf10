"""A search gives the candidates with the lowest loss that keep the budget, proven, as recipes that make them."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from fxcompress import CompressError, ProofError, verify
from fxcompress.criteria import Activation
from fxcompress.gather import gather
from fxcompress.pipeline import Pipeline
from fxcompress.recipe import Recipe
from fxcompress.searching import trial
from fxcompress.searching.loss import zero_shot_loss
from fxcompress.searching.pareto import front
from fxcompress.verify import Law
from tests import models
from tests.search.tiny import BATCHES

ROOMY = "latency<=1000s at prompt=4, new=2"


def batches():
    return [{"input_ids": ids} for ids in BATCHES]


def test_the_best_are_those_with_the_lowest_loss_of_all_trials(found):
    losses = sorted(t.loss for t in found.trials)
    assert [best.trial.loss for best in found.best] == losses[:2]
    assert [t.loss for t in found.ranked] == losses


def test_the_largest_that_fit_are_tried(found):
    assert len(found.trials) == 4
    assert found.candidates > 4
    counts = [t.parameters for t in found.trials]
    assert counts == sorted(counts, reverse=True)
    assert max(counts) <= 40_000


def test_what_is_said_of_a_trial_is_true_of_the_model_that_its_passes_make(found):
    best = found.best[0]
    small = Pipeline(best.passes, verify=False).run(models.captured("llama", torch.float32), BATCHES)
    assert sum(p.numel() for _, p in small.parameters()) == best.trial.parameters
    assert zero_shot_loss(small, batches()) == best.trial.loss


def test_every_pass_of_the_best_is_proven(found):
    for best in found.best:
        assert {law["pass"] for law in best.laws} == {p.name for p in best.passes}
        assert {law["name"] for law in best.laws} >= {"prune equals mask", "count", "shapes"}


def test_a_recipe_is_what_compress_takes(found):
    for i, best in enumerate(found.best):
        assert tuple(Recipe.from_yaml(found.recipe(i)).passes()) == best.passes


def test_a_criterion_stands_in_the_recipe_with_its_options(small_search):
    result = small_search(score=Activation(sequence="mean"), trials=1, best=1)
    assert Recipe.from_yaml(result.recipe(0)).passes()[0].score == "activation(sequence=mean)"


def test_the_table_has_the_model_as_it_is_the_best_and_the_others(found):
    console = Console(width=160, record=True)
    console.print(found)
    text = console.export_text()
    assert all(
        said in text for said in ("as it is", "57,936", "recipe-1", "recipe-2", f"{found.best[0].trial.loss:.4f}")
    )
    assert "recipe-3" not in text


def test_the_model_is_left_alone(small_search):
    model = models.tiny("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small_search(model=model, trials=1, best=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_axis_that_stays_as_it_is_needs_no_pass(small_search):
    (best,) = small_search("parameters<=57K", space={"ffn": [72, 80]}, trials=1, best=1).best
    assert [p.name for p in best.passes] == ["PruneFFN"]


def test_a_score_of_ones_own_is_used(small_search):
    asked = []

    def score(program, group):
        asked.append(group.key)
        return torch.rand(group.sizes)

    small_search("parameters<=50K", space={"ffn": [40]}, score=score, trials=1, best=1)
    assert len(asked) == 3 * 2  # three layers, once in the trial and once in the proof


def test_what_stock_transformers_cannot_hold_is_not_tried(small_search):
    only = small_search("parameters<=50K", space={"width": [32, 36]}, profile="transformers", trials=1, best=1)
    assert [(t.sizes["width"], bool(t.why)) for t in only.trials] == [(36, False)]
    with pytest.raises(CompressError, match=r"none of the 1 candidates.*width=32: .*no config of LlamaForCausalLM"):
        small_search(space={"width": [32]}, profile="transformers", trials=1, best=1)


def test_the_original_is_observed_once_for_all_trials(small_search, monkeypatch):
    asked = []

    def gathering(program, watches, batches):
        asked.append(list(watches))
        return gather(program, watches, batches)

    monkeypatch.setattr(trial, "gather", gathering)
    small_search(space={"ffn": [40, 48, 56]}, budget="parameters<=50K", trials=3, best=2)
    assert len(asked) == 1


# What cannot win


def test_a_candidate_whose_loss_is_not_finite_is_out(small_search, monkeypatch):
    losses = iter([5.0, float("nan"), 4.0])
    monkeypatch.setattr(trial, "zero_shot_loss", lambda *_: next(losses))
    result = small_search(trials=1, best=1)
    assert [t.why for t in result.trials] == ["its loss is not finite", ""]
    assert result.best[0].trial.loss == 4.0


def test_one_that_turns_out_not_to_load_makes_way_for_the_next(small_search, monkeypatch):
    proofs = iter([{"laws": [], "why": "a constant"}, {"laws": [], "why": ""}])
    monkeypatch.setattr(trial.Bench, "prove", lambda *_: next(proofs))
    result = small_search(best=1)
    assert [result.ranked[-1].why, result.best[0].trial] == ["a constant", result.ranked[0]]


def test_a_law_that_does_not_hold_withholds_the_result(small_search, monkeypatch):
    monkeypatch.setattr(verify, "prune_equals_mask", lambda *_: Law("prune equals mask", 0.5, 1e-3))
    with pytest.raises(ProofError, match="prune equals mask: FAILS"):
        small_search(trials=1, best=1)


def test_no_trial_is_better_than_one_on_the_front_in_both(found):
    kept = front(found.trials, found.budgets[0])
    assert kept
    for one in found.trials:
        assert any(t.parameters <= one.parameters and t.loss <= one.loss for t in kept)
    for one in kept:
        assert not any(t.parameters < one.parameters and t.loss < one.loss for t in found.trials)


# Measured budgets


def test_what_is_measured_is_generation_next_to_the_originals(small_search):
    result = small_search([ROOMY, "throughput>=0.001 at batch=2, prompt=4, new=2"], trials=2, best=1)
    latency, throughput = map(str, result.budgets)
    for each in result.trials:
        assert 0 < each.figures[latency] < 1000
        assert each.figures[throughput] > 0.001
        assert min(each.ratios.values()) > 0


def test_with_a_measured_budget_sizes_from_all_over_the_space_are_tried(small_search, monkeypatch):
    monkeypatch.setattr(trial, "compare", lambda *_: (0.5, 1.0))
    counts = [t.parameters for t in small_search(ROOMY, trials=3, best=1).trials]
    assert counts[0] > 50_000
    assert counts[-1] < 20_000


def test_a_trial_that_is_too_slow_is_out(small_search, monkeypatch):
    seconds = iter([3.0, 1.0, 0.5])
    monkeypatch.setattr(trial, "compare", lambda *_: (next(seconds), 2.0))
    result = small_search("latency<=1s at prompt=4, new=2", trials=3, best=1)
    slow = [t for t in result.trials if t.why]
    assert [t.why for t in slow] == ["3 s for latency<=1s at prompt=4, new=2"]
    assert slow[0].ratios == {"latency<=1s at prompt=4, new=2": 1.5}
    assert result.best[0].trial not in slow


def test_a_measured_budget_that_nothing_keeps_names_the_closest(small_search, monkeypatch):
    seconds = iter([3.0, 2.5, 2.75])
    monkeypatch.setattr(trial, "compare", lambda *_: (next(seconds), 2.0))
    with pytest.raises(
        CompressError, match=r"none of the 3 candidates that were timed.*closest, .*: 2.5 s for latency"
    ):
        small_search("latency<=1s at prompt=4, new=2", trials=3, best=1)


class Plain(nn.Module):
    """A language model that is not one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(96, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 96)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_of_a_plain_module_the_prompt_alone_is_measured(small_search):
    plain = models.perturb(Plain().eval())
    others = {"model": plain, "space": {"ffn": [16, 32]}, "trials": 1, "best": 1, "example_inputs": models.ids(2, 8)}
    result = small_search("latency<=1000s at prompt=8, new=0", **others)
    assert result.best[0].trial.sizes == {"ffn": 16}
    with pytest.raises(
        CompressError, match="Plain has no generate of transformers: measure the prompt alone, with new=0"
    ):
        small_search("latency<=1000s at prompt=8, new=3", **others)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"budget": "parameters<=1K"}, "no candidate keeps the budget; the closest, .*layers=2, has"),
        ({"budget": ["parameters<=30K", "parameters>=40K"]}, "contradicts itself"),
        ({"budget": []}, "no budget is given"),
        ({"space": {"fnn": None}}, "there is no axis 'fnn'"),
        ({"space": {}}, "the space has no axis"),
        ({"calibration": None}, "ranks by the loss on calibration data"),
        ({"calibration": []}, "the calibration data has no batch"),
        ({"profile": "tgi"}, "profile='tgi' is unknown"),
        ({"score": "magnitud"}, "score='magnitud' is unknown"),
        ({"best": 0}, "best=0 of trials=4"),
        ({"best": 5}, "best=5 of trials=4"),
        ({"device": "moon"}, "device='moon' is not there"),
        ({"layer_order": (0, 1)}, "does not name each of the 3 layers once"),
        ({"layer_order": "cosin"}, "layer_order='cosin' is unknown; there are cosine, loss, kl, hidden"),
        ({"calibration": [models.ids(2, 8) + 1000]}, "tokenizer and model do not belong together"),
    ],
)
def test_a_request_that_means_nothing_is_refused(small_search, arguments, why):
    with pytest.raises(CompressError, match=why):
        small_search(**arguments)


def test_nan_in_a_weight_is_named(small_search):
    program = models.captured("llama", torch.float32)
    broken = program.map_state(lambda name, t: t * float("nan") if name.endswith("layers.1.mlp.up_proj.weight") else t)
    with pytest.raises(CompressError, match=r"layers\.1\.mlp\.up_proj\.weight .* values that are NaN or Inf"):
        small_search(model=broken)


def test_a_model_whose_own_loss_is_not_finite_ranks_nothing(small_search):
    program = models.captured("llama", torch.float32)
    broken = program.map_state(lambda name, t: t * 1e38)
    with pytest.raises(CompressError, match="the loss of the model itself is not finite"):
        small_search(model=broken, space={"ffn": [40, 48]}, budget="parameters<=50K")


def test_a_model_without_values_is_refused(small_search):
    with pytest.raises(CompressError, match="the model is on meta"):
        small_search(model=models.captured("llama", torch.float32).on_device(torch.device("meta")))


def test_a_score_of_ones_own_does_not_fit_into_a_recipe(small_search, tmp_path):
    with pytest.raises(CompressError, match="does not fit into a recipe"):
        small_search(score=lambda program, group: torch.rand(group.sizes), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
