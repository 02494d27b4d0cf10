"""Costs against PyTorch's own counter and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fxcompress
from fxcompress import capture
from fxcompress.cost import LENGTH, Cost
from fxcompress.memory import memory
from fxcompress.passes import PruneAttentionHeads, PruneFFN, PruneSSMHeads
from tests import models, plain


def figures(name):
    return models.captured(name, torch.float32).get(Cost).figures


@pytest.mark.parametrize("name", models.FAMILIES)
def test_parameters_are_counted_once_however_many_names_they_have(name):
    model = models.tiny(name)
    assert figures(name).parameters == sum(p.numel() for p in model.parameters())
    assert figures(name).weight_bytes == 4 * figures(name).parameters


def test_flops_of_projections_and_attention_equal_pytorchs_counter():
    """The counter sees the eager model, whose attention repeats keys: the products are the same."""
    model = models.tiny("llama")
    model.set_attn_implementation("eager")
    length = 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(models.ids(1, length), use_cache=False)
    ours = models.captured("llama", torch.float32).get(Cost)
    assert ours._flops(ours.axes.program.symbols(), length, None) == counter.get_total_flops()


def test_flops_of_convolutions_equal_pytorchs_counter():
    model, image = plain.ResNet().eval(), torch.randn(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert fxcompress.capture(model, image.repeat(2, 1, 1, 1)).get(Cost).figures.prefill_flops_per_token == (
        counter.get_total_flops()
    )


def test_decoding_attends_to_the_cache_and_projects_one_token():
    before = figures("llama")
    layers, heads, width = 3, 6, 8
    projections = 2 * (before.parameters - 48 * 7)  # all matrices; the tied one is used as the head only
    attention = layers * 2 * heads * LENGTH * 2 * width
    assert before.decode_flops_per_token == pytest.approx(projections + attention, rel=0.02)


def test_the_cache_is_keys_values_and_states():
    assert figures("llama").cache_bytes_per_token == 3 * 2 * 2 * 8 * 4
    assert figures("llama").cache_bytes_per_sequence == 0
    mamba2 = figures("mamba2")
    assert mamba2.cache_bytes_per_token == 0
    conv = (96 + 2 * 3 * 7) * 3
    assert mamba2.cache_bytes_per_sequence == 3 * 4 * (12 * 8 * 7 + conv)


@pytest.mark.parametrize(
    ("name", "p", "figure"),
    [
        ("llama", PruneFFN(ratio=0.5), "prefill_flops_per_token"),
        ("llama", PruneAttentionHeads(size=1, kv=True), "cache_bytes_per_token"),
        ("mamba2", PruneSSMHeads(ratio=0.5), "cache_bytes_per_sequence"),
    ],
)
def test_pruning_lowers_the_figure_it_is_meant_to(name, p, figure):
    small = fxcompress.apply(models.captured(name, torch.float32), [p])
    before, after = small.report.summary()[figure]
    assert after < before


def test_states_of_scans_are_float32_in_a_narrow_model_and_convolutions_are_not():
    narrow, wide = (capture(models.tiny("mamba2").to(d)).get(Cost).figures for d in (torch.bfloat16, torch.float32))
    program = capture(models.tiny("mamba2").to(torch.bfloat16))
    held = memory(program)
    assert narrow.cache_bytes_per_sequence == held.convolution + held.state
    assert wide.cache_bytes_per_sequence == 2 * held.convolution + held.state


def test_query_heads_leave_the_cache_as_it_is():
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneAttentionHeads(size=4)])
    before, after = small.report.summary()["cache_bytes_per_token"]
    assert before == after
