"""Removing the attention, the feed-forward network or the SSM of a layer, and nothing else of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress import CompressError
from fxcompress.passes import PruneFFN, RemoveLayers
from tests import models

CASES = [
    ("llama", "attention", "model.layers.1.self_attn"),
    ("llama", "ffn", "model.layers.1.mlp"),
    ("gemma2", "attention", "model.layers.1.self_attn"),  # a norm stands between the module and the stream
    ("gpt_neox", "attention", "gpt_neox.layers.1.attention"),  # beside the network, both added to the stream
    ("gpt_neox", "ffn", "gpt_neox.layers.1.mlp"),
    ("mixtral", "ffn", "model.layers.1.mlp"),
    ("jamba", "attention", "model.layers.1.self_attn"),
    ("falcon_h1", "ssm", "model.layers.1.mamba"),
    ("falcon_h1", "attention", "model.layers.1.self_attn"),
    ("nemotron_h", "ffn", "model.layers.1"),  # a layer that is nothing else goes as a whole
]


class Nothing(nn.Module):
    """Adds nothing to the stream, whatever it is given."""

    def __init__(self, results: int) -> None:
        super().__init__()
        self.results = results

    def forward(self, x=None, *_, hidden_states=None, **__):
        nothing = torch.zeros_like(hidden_states if x is None else x)
        return nothing if self.results == 1 else (nothing, *[None] * (self.results - 1))


@pytest.mark.parametrize(("name", "part", "path"), CASES)
def test_the_part_goes_and_the_laws_hold(name, part, path):
    program = models.captured(name)
    small = fxcompress.apply(program, [RemoveLayers(layers=(1,), part=part)])
    assert small.steps[0].remove == (path,)
    gone = set(program.state) - set(small.program.state)
    assert any(tensor.startswith(path + ".") for tensor in gone)
    laws = {law["name"]: law["error"] for law in small.report.passes[0]["laws"]}
    assert laws["prune equals mask"] <= 1e-9


@pytest.mark.parametrize(("name", "part", "results"), [("llama", "attention", 2), ("llama", "ffn", 1)])
def test_the_result_is_the_eager_model_whose_part_adds_nothing(name, part, results):
    model = models.tiny(name)
    small = fxcompress.apply(model, [RemoveLayers(layers=(1,), part=part)])
    setattr(model.model.layers[1], {"attention": "self_attn", "ffn": "mlp"}[part], Nothing(results))
    ids = models.ids(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)


def test_parts_are_saved_and_loaded_beside_other_passes(tmp_path):
    passes = [RemoveLayers(layers=(0, 2), part="attention"), RemoveLayers(layers=(1,)), PruneFFN(ratio=0.25)]
    small = fxcompress.apply(models.captured("llama", torch.float32), passes)
    again = fxcompress.load(small.save_pretrained(tmp_path / "out"))
    ids = models.ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small(ids).logits)


@pytest.mark.parametrize(
    ("name", "p", "said"),
    [
        ("llama", RemoveLayers(layers=(1,), part="ssm"), "model.layers.1 has no ssm that could be removed"),
        # within the shared block nothing is added to the stream but by the block as a whole
        ("zamba2", RemoveLayers(layers=(1,), part="attention"), "has no attention that could be removed"),
    ],
)
def test_a_layer_without_such_a_part_is_refused(name, p, said):
    with pytest.raises(CompressError, match=said):
        fxcompress.apply(models.captured(name), [p])


def test_an_unknown_part_is_refused_when_the_pass_is_made():
    with pytest.raises(CompressError, match="there are attention, ffn and ssm"):
        RemoveLayers(layers=(1,), part="norm")
