"""Removing experts and their neurons: the router follows, against a model built at the smaller size by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError
from fxcompress.axes import AxisMap
from fxcompress.passes import PruneExpertFFN, PruneExperts
from tests import models

MOE = ("mixtral", "qwen3_moe", "nemotron_h_moe", "nemotron_h_latent", "jamba", "qwen3_next", "deepseek_v3")


def test_the_result_is_the_model_that_has_these_experts_alone():
    """Built by transformers from the smaller config, its weights sliced here and by no code of the library."""
    model = models.tiny("qwen3_moe")
    small = fxcompress.apply(model, [PruneExperts(size=4)])
    config = copy.deepcopy(model.config)
    config.num_experts = 4
    by_hand = AutoModelForCausalLM.from_config(config).eval()
    state = dict(model.state_dict())
    for key, kept in small.steps[0].keep.items():
        prefix = key.split(".experts.")[0]
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            state[f"{prefix}.{name}"] = state[f"{prefix}.{name}"][kept]
    by_hand.load_state_dict(state)
    ids = models.ids(3, 14)
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, by_hand(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MOE)
def test_experts_neurons_are_chosen_for_every_expert_by_its_own_scores(name):
    program = models.captured(name)
    group = next(g for g in program.get(AxisMap).groups if "expert_neuron" in g.roles)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(group.sizes, generator=generator)  # (experts, width), or (routing groups, experts, width)
    wanted = scores.topk(group.size // 2, -1).indices.sort(-1).values
    layer = group.slots[0].name.split(".experts")[0]
    p = PruneExpertFFN(ratio=0.5, score={group.key: scores}, layers=layer)
    small = fxcompress.apply(program, [p])
    assert torch.equal(small.steps[0].keep[group.key], wanted)
    down = f"{layer}.experts.down_proj"
    by_expert = zip(program.state[down], wanted.flatten(0, -2), strict=True)
    expected = torch.stack([weight[:, kept] for weight, kept in by_expert])
    assert torch.equal(small.program.state[down], expected)
    assert all(law["error"] <= 1e-9 for law in small.report.passes[0]["laws"])


def test_routing_groups_lose_the_same_number_each():
    small = fxcompress.apply(models.captured("deepseek_v3"), [PruneExperts(size=4, score="random")])
    assert all(kept.shape == (2, 2) for kept in small.steps[0].keep.values())
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert small.program.state[bias].shape == (4,)


def test_shared_experts_stay_as_they_are():
    before = models.captured("deepseek_v3")
    after = fxcompress.apply(before, [PruneExperts(size=4)]).program.state
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    assert torch.equal(after[name], before.state[name])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("mixtral", lambda: PruneExperts(size=1), "1 of 6 would be left, at least 2 must stay"),
        ("deepseek_v3", lambda: PruneExperts(size=2), "2 of 6 would be left, at least 4 must stay"),
        ("mixtral", lambda: PruneExperts(ratio=0.9, scope="global"), "12 can in steps of up to 1"),
        ("llama", lambda: PruneExperts(ratio=0.5), "no expert in this model"),
        ("mixtral", lambda: PruneExpertFFN(ratio=0.5, score="activation"), "no activation is contracted"),
    ],
)
def test_what_a_router_cannot_do_without_is_refused(name, make, said):
    with pytest.raises(CompressError) as refusal:
        fxcompress.apply(models.captured(name), [make()], calibration=models.ids(2, 8))
    assert said in str(refusal.value)
