"""Which sizes near the asked one stock transformers can hold, said before anything is cut."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import NotExpressible, capture
from fxcompress.export.nearest import nearest
from fxcompress.passes import PruneAxes, PruneEmbedding, PruneFFN, PruneSSMHeads
from tests import models


@pytest.fixture(scope="module")
def on_meta():
    def build(name):
        with torch.device("meta"):
            return capture(AutoModelForCausalLM.from_config(models.config(name)).eval())

    return build


@pytest.mark.parametrize("name", ["mamba2", "bamba"])
def test_the_nearest_sizes_below_and_above_are_named(on_meta, name):
    assert nearest(on_meta(name), PruneSSMHeads(size=9)).endswith("can hold 6 or 12 ssm heads, not 9")


def test_a_size_that_is_named_can_be_held_and_one_between_cannot():
    program = models.captured("mamba2", torch.float32)
    fxcompress.apply(program, [PruneSSMHeads(size=6)]).to_transformers()
    with pytest.raises(NotExpressible):
        fxcompress.apply(program, [PruneSSMHeads(size=9)]).to_transformers()


def test_factors_on_both_sides_of_an_equation_may_move(on_meta):
    """hidden · expand = heads · head_dim: 32 · 3 as well as 48 · 2."""
    assert nearest(on_meta("mamba2"), PruneEmbedding(size=36)) == (
        "Mamba2ForCausalLM can hold 32 or 48 residual channels, not 36"
    )


def test_where_no_number_can_be_held_the_reason_is_said(on_meta):
    assert nearest(on_meta("llama"), PruneAxes(role="v_channel", size=12)) == (
        "LlamaForCausalLM can hold no number of v channels but 16: no config of LlamaForCausalLM has the shapes of the"
        " result: model.layers.0.self_attn.v_proj.weight of (16, 48) would have to be (12, 48)"
    )


def test_sizes_of_layers_of_their_own_are_advised_against_without_a_search(on_meta):
    program = on_meta("llama")
    assert "scope='layer' with the same ratio" in nearest(program, PruneFFN(ratio=0.25, scope="global"))
    assert "layers= leaves out others" in nearest(program, PruneFFN(ratio=0.25, layers="*.1"))


def test_what_can_be_held_is_not_said_to_be_impossible(on_meta):
    assert nearest(on_meta("llama"), PruneFFN(size=60)).startswith("LlamaForCausalLM can hold 60 ffn neurons")


def test_nothing_is_rewritten(on_meta):
    program = on_meta("mamba2")
    before = {name: tuple(t.shape) for name, t in program.state.items()}
    nearest(program, PruneSSMHeads(size=9))
    assert {name: tuple(t.shape) for name, t in program.state.items()} == before
