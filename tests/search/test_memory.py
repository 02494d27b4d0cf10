"""Bytes against what transformers really holds after a prefill, and against the published memory of a 47B hybrid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError, capture
from fxcompress.memory import Footprint, Memory, Precision, memory, read_bits
from fxcompress.passes import PruneAttentionHeads, PruneFFN, PruneSSMHeads
from tests import models, plain
from tests.recipes.published import PUBLISHED

BATCH, CONTEXT = 2, 11
CONV_KERNEL = 4  # of all tiny models

SERVED = Precision(weights=4, cache=8, state=16, convolution=16)
GIB = 2**30


def tensors(cache: Any) -> Iterator[Tensor]:
    """What a cache holds of keys, values and states."""
    for layer in cache.layers:
        for name in ("keys", "values", "conv_states", "recurrent_states"):
            held = getattr(layer, name, None)
            yield from held.values() if isinstance(held, dict) else [] if held is None else [held]


def measured(model: Any) -> int:
    with torch.no_grad():
        out = model(models.ids(BATCH, CONTEXT), use_cache=True)
    cache = out.past_key_values if "past_key_values" in out else out.cache_params
    return sum(t.numel() * t.element_size() for t in tensors(cache))


def with_one_more_column(found: Memory) -> int:
    """transformers keeps the column of the current token too: as many columns as the convolution reads."""
    return found.total - found.weights + found.convolution // (CONV_KERNEL - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "nemotron_h", "bamba", "zamba2", "qwen3_next"])
def test_cache_and_states_are_what_transformers_holds_after_a_prefill(name: str, dtype: torch.dtype):
    model = models.tiny(name).to(dtype)
    assert with_one_more_column(memory(capture(model), BATCH, CONTEXT)) == measured(model)


def test_weights_are_counted_once_in_the_dtypes_that_they_have():
    model = models.tiny("llama").to(torch.bfloat16)  # its head is tied
    assert memory(capture(model)).weights == 2 * sum(p.numel() for p in model.parameters())


def test_what_was_cut_is_what_the_smaller_model_holds():
    small = fxcompress.apply(
        models.tiny("nemotron_h"), [PruneSSMHeads(ratio=0.5), PruneAttentionHeads(size=1, kv=True)]
    )
    assert with_one_more_column(memory(small.program, BATCH, CONTEXT)) == measured(small.to_transformers())


def test_states_do_not_grow_with_the_context_and_a_cache_does():
    program = models.captured("nemotron_h", torch.float32)
    short, long = memory(program, 1, 10), memory(program, 1, 1000)
    assert (short.state, short.convolution, short.weights) == (long.state, long.convolution, long.weights)
    assert long.cache == 100 * short.cache


def test_neurons_leave_all_but_the_weights_as_they_were():
    before = memory(models.captured("llama", torch.float32), BATCH, CONTEXT)
    after = memory(fxcompress.apply(models.tiny("llama"), [PruneFFN(ratio=0.5)]).program, BATCH, CONTEXT)
    assert after.weights < before.weights
    assert after.cache == before.cache


def test_a_model_without_a_cache_takes_its_weights_alone():
    program = capture(plain.ResNet().eval(), torch.randn(2, 3, 16, 16))
    found = memory(program, batch=8, context=4096)
    assert found.total == found.weights > 0


def test_each_part_has_a_precision_of_its_own():
    program = models.captured("nemotron_h", torch.float32)
    full = memory(program, BATCH, CONTEXT)
    small = memory(program, BATCH, CONTEXT, Precision(weights=4, cache=8, convolution=16))
    assert small.weights == -(-full.weights // 8)
    assert small.cache == full.cache // 4
    assert small.convolution == full.convolution // 2
    assert small.state == full.state


def test_scales_count_as_parts_of_an_element_and_bytes_are_whole():
    count = Footprint({torch.bfloat16: 33}, {}, {}, {})
    assert count.memory(precision=Precision(weights=4.5)).weights == 19  # 18.5625
    assert count.memory().weights == 66


def test_the_published_memory_of_the_47b_hybrid_follows_from_its_counts():
    """FP4 weights, FP8 cache, bf16 states, a million tokens: 31.7 GiB (arXiv 2504.03624)."""
    count = Footprint(
        {torch.bfloat16: 46_800_000_000}, {torch.bfloat16: 5 * 2 * 1024}, {}, {torch.float32: 45 * 256 * 64 * 256}
    )
    assert round(count.memory(1, 1_000_000, SERVED).total / GIB, 1) == 31.7


@pytest.mark.slow
def test_the_47b_hybrid_itself_takes_the_published_memory():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**PUBLISHED["mini-puzzle"].sizes), dtype=torch.bfloat16
        )
    found = memory(capture(model), 1, 1_000_000, SERVED)
    assert round(2 * found.weights / 1e9, 1) == 46.8
    assert found.cache == 5 * 2 * 8 * 128 * 1_000_000
    assert found.state == 45 * 256 * 64 * 256 * 2
    assert round(found.total / GIB, 1) == 31.7


@pytest.mark.parametrize("bits", [0, -8, 65, float("nan"), float("inf")])
def test_no_number_of_bits_is_refused(bits: float):
    with pytest.raises(CompressError, match="no number of bits"):
        Precision(weights=bits)
    with pytest.raises(CompressError, match="no number of bits"):
        read_bits(str(bits))


def test_bits_are_read_by_name_or_as_a_number():
    assert [read_bits(text) for text in ("fp8", "int4", "bf16", "4.5")] == [8, 4, 16, 4.5]
    with pytest.raises(CompressError, match="'fp7' is neither a number of bits nor one of fp32"):
        read_bits("fp7")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "mamba2", "nemotron_h"])
def test_parameters_outside_of_embedding_and_head(name: str):
    model = models.tiny(name)
    tables = {
        id(module.weight): module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    biases = [getattr(model.get_output_embeddings(), "bias", None)]
    of_vocabulary = sum(t.numel() for t in [*tables.values(), *biases] if t is not None)
    found = Footprint.of(capture(model))
    assert found.non_embedding == found.parameters - of_vocabulary


def test_a_model_that_reads_no_tokens_has_no_embedding():
    found = Footprint.of(capture(torch.nn.Linear(4, 8), (torch.randn(2, 4),)))
    assert found.non_embedding == found.parameters == 40
