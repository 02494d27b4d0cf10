"""body and tail give what the model gives, in every family, with nothing known of its class."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from fxcompress.distillation.halves import halves_of
from tests import models

IDS = models.ids(2, 9)


@pytest.mark.parametrize("name", models.ALL)
def test_the_halves_of_a_model_give_its_logits(name):
    model = models.tiny(name)
    halves = halves_of(model, IDS)
    assert halves.whole == ""
    with torch.no_grad():
        hidden = halves.body(input_ids=IDS)
        assert hidden.shape == (2, 9, 48)
        logits = halves.tail(hidden.flatten(0, 1)).view(2, 9, 96)
        assert torch.allclose(logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


def test_a_soft_cap_stays_in_the_tail():
    """The planted fault: the projection alone is not what gemma2 gives."""
    model = models.tiny("gemma2")
    model.config.final_logit_softcapping = 0.5
    halves = halves_of(model, IDS)
    with torch.no_grad():
        hidden = halves.body(input_ids=IDS)[0]
        assert halves.tail(hidden).abs().max() <= 0.5
        assert model.lm_head(hidden).abs().max() > 0.5


def test_the_model_keeps_its_base():
    model = models.tiny("llama")
    before = dict(model.named_modules())
    halves_of(model, IDS)
    assert dict(model.named_modules()) == before
    assert next(iter(model.children())) is model.base_model


def test_gradients_through_the_tail_reach_head_and_body():
    model = models.tiny("mamba2").train()
    halves = halves_of(model, IDS)
    assert model.training
    halves.tail(halves.body(input_ids=IDS).flatten(0, 1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_tail_that_is_not_the_last_layer_is_seen_and_the_model_taken_whole():
    """Logits that also depend on what went before the last hidden states."""

    class Skipping(type(models.tiny("llama"))):
        def forward(self, input_ids=None, **kwargs):
            out = super().forward(input_ids=input_ids, **kwargs)
            if input_ids is not None:
                out.logits = out.logits + input_ids[..., None]
            return out

    model = Skipping(models.config("llama")).eval()
    halves = halves_of(model, IDS)
    assert "the two halves of Skipping differ from it by" in halves.whole
    logits = model(input_ids=IDS).logits
    assert halves.tail(halves.body(input_ids=IDS)).equal(logits)


def test_a_tail_that_does_not_run_alone_is_seen_and_the_model_taken_whole():
    class Asking(type(models.tiny("llama"))):
        def forward(self, input_ids=None, **kwargs):
            assert input_ids.dim() == 2
            return super().forward(input_ids=input_ids, **kwargs)

    model = Asking(models.config("llama")).eval()
    assert "does not run alone" in halves_of(model, IDS).whole


def test_a_module_without_a_base_is_taken_whole():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(96, 8), nn.Linear(8, 96)

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            return CausalLMOutput(logits=self.head(self.embed(input_ids)))

    halves = halves_of(Plain(), IDS)
    assert "Plain has no base model of its own" in halves.whole
    assert halves.body(input_ids=IDS).shape == (2, 9, 96)
