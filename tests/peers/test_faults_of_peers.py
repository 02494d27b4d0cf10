"""What was seen to go wrong elsewhere, with exit code 0, does not happen here. Each is checked against transformers.

Not here yet, for passes to come: 2:4 weights whose checkpoint holds dense weights and masks, so that a reload has no
zeros; sparsity 0.75 with a mask of 1:4 that leaves a quarter; a half of the KV cache that keeps all of it; hybrids
whose cache cannot be compressed at all.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError, passes
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneFFN,
    PruneSSMHeads,
    RemoveLayers,
)
from tests import models
from tests.peers import originals

IDS = models.ids(2, 11)
HEADS_AND_FFN = (PruneAttentionHeads(ratio=0.5), PruneFFN(ratio=0.5))
SSM_HEADS = (PruneSSMHeads(ratio=0.5, score="random"),)
DROPPED = (RemoveLayers(layers=(1,)),)
HEAD, HEADS, KV_HEADS = 8, 8, 2  # channels of a head, query heads, KV heads of the originals


@functools.cache
def captured(name: str) -> fxcompress.Program:
    return fxcompress.capture(originals.model(name))


def compress(name: str, *wanted: passes.PruneAxes | RemoveLayers) -> fxcompress.CompressedModel:
    return fxcompress.apply(captured(name), list(wanted))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(name, passes) -> the result in memory and its directory, made once for all tests that look at it."""

    @functools.cache
    def result(name: str, *wanted: passes.PruneAxes | RemoveLayers) -> tuple[fxcompress.CompressedModel, Path]:
        small = compress(name, *wanted)
        return small, small.save_pretrained(tmp_path_factory.mktemp(name) / "out")

    return result


def stock(folder: Path) -> torch.nn.Module:
    """What transformers loads, by its own report complete: a tensor that is missing would be drawn at random."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    return model.eval()


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-4, atol=1e-4)


def rows_kept(before: Tensor, after: Tensor) -> list[int]:
    """Where the rows of a pruned matrix stand in the original: which ones stayed is measured, not told."""
    equal = (before[None] == after[:, None]).flatten(2).all(-1)
    assert equal.any(-1).all()
    return equal.int().argmax(-1).tolist()


def heads_kept(name: str, small: fxcompress.CompressedModel) -> list[tuple[list[int], list[int]]]:
    """Query and KV heads that stayed in each attention. Fails where a head is not whole."""
    state = originals.model(name).state_dict()
    return [
        tuple(
            _whole(rows_kept(state[key.replace("q_proj", kind)], small.program.state[key.replace("q_proj", kind)]))
            for kind in ("q_proj", "k_proj")
        )
        for key in state
        if key.endswith("q_proj.weight")
    ]


def _whole(rows: list[int]) -> list[int]:
    heads = [row // HEAD for row in rows[::HEAD]]
    assert rows == [head * HEAD + i for head in heads for i in range(HEAD)], "a head is cut through"
    return heads


def silenced(model: torch.nn.Module, layer: int) -> torch.nn.Module:
    """The model with a layer that adds nothing to the residual stream."""
    for name, m in model.named_modules():
        if f".layers.{layer}." in name and name.endswith(("o_proj", "down_proj", "out_proj")):
            for parameter in m.parameters():
                parameter.data.zero_()
    return model


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "nemotron_h"])
def test_heads_stay_whole_and_query_heads_stay_with_their_kv_head(name, kv):
    for queries, kv_heads in heads_kept(name, compress(name, PruneAttentionHeads(ratio=0.5, kv=kv, score="random"))):
        assert len(queries) == HEADS // 2
        assert len(kv_heads) == (KV_HEADS // 2 if kv else KV_HEADS)
        now = len(queries) // len(kv_heads)
        assert [kv_heads[i // now] for i in range(len(queries))] == [q // (HEADS // KV_HEADS) for q in queries]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_half_of_the_heads_is_half_of_the_heads_also_under_norms_of_q_and_k(name, saved):
    small, out = saved(name, *HEADS_AND_FFN)
    model = originals.model(name)
    for key, linear in model.named_modules():
        if key.endswith(("o_proj", "down_proj")):
            kept = rows_kept(linear.weight.T, small.program.state[f"{key}.weight"].T)
            assert len(kept) == linear.in_features // 2
            linear.weight.data[:, sorted(set(range(linear.in_features)) - set(kept))] = 0
    assert_same(stock(out), model)


@pytest.mark.parametrize(("ratio", "asked", "got"), [(0.3, 2.4, 2), (0.4, 3.2, 4)])
def test_a_ratio_between_two_steps_is_reported_as_asked_got_and_step(ratio, asked, got):
    small = compress("llama", PruneAttentionHeads(ratio=ratio))
    for row in small.report.passes[0]["rows"]:
        assert row["asked"] == pytest.approx(asked)
        assert (row["got"], row["step"]) == (got, KV_HEADS)
    assert {len(queries) for queries, _ in heads_kept("llama", small)} == {HEADS - got}


@pytest.mark.parametrize(
    ("name", "make", "nearest"),
    [
        ("llama", lambda: PruneAttentionHeads(ratio=0.1), "the nearest ratio is 0.25"),
        ("llama", lambda: PruneAttentionHeads(ratio=0.9), "the nearest ratio is 0.75"),
        ("llama", lambda: PruneAttentionHeads(size=5), "the nearest sizes are 4 and 6"),
        ("mamba2", lambda: PruneSSMHeads(size=7), "the nearest sizes are 6 and 9"),
    ],
)
def test_what_is_not_feasible_is_refused_with_the_nearest_that_is(name, make, nearest):
    with pytest.raises(CompressError, match=nearest):
        compress(name, make())


# ---- nothing is done in silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "p"),
    [
        ("llama", PruneSSMHeads(ratio=0.5)),
        ("mamba2", PruneFFN(ratio=0.5)),
        ("qwen3", PruneAxes(role="expert", ratio=0.5)),
    ],
)
def test_a_pass_that_finds_nothing_to_cut_is_refused_instead_of_cutting_nothing(name, p):
    with pytest.raises(CompressError, match="in this model"):
        compress(name, p)


@pytest.mark.parametrize("amount", [{}, {"ratio": 0.5, "size": 4}, {"ratio": 1.5}, {"ratio": -0.5}, {"size": 0}])
def test_contradictory_amounts_are_refused_when_they_are_said(amount):
    with pytest.raises(CompressError):
        PruneAttentionHeads(**amount)


def test_half_of_the_experts_is_half_of_the_experts(saved):
    small, out = saved("qwen3_moe", passes.PruneExperts(ratio=0.5))
    model = stock(out)
    before = originals.model("qwen3_moe").state_dict()
    routers = [key for key in before if key.endswith("mlp.gate.weight")]
    assert len(routers) == 3
    for key in routers:
        assert len(set(rows_kept(before[key], model.state_dict()[key]))) == 4
    assert sum(p.numel() for p in model.parameters()) < 0.75 * sum(t.numel() for t in before.values())
    assert_same(model, small)


# ---- ties ------------------------------------------------------------------------------------------------------------


def test_tied_embeddings_are_tied_in_memory_on_disk_and_after_a_reload(saved):
    small, out = saved("llama", PruneEmbedding(ratio=0.5))
    vocabulary = [t for t in small.program.state.values() if t.shape[0] == captured("llama").origin.config.vocab_size]
    assert [tuple(t.shape) for t in vocabulary] == [(96, 24)]
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    model = stock(out)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_same(model, small)


# ---- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "mamba2", "nemotron_h", "bamba", "falcon_h1"])
def test_a_model_without_a_layer_is_reloaded_with_no_weight_made_up(name, saved):
    _, out = saved(name, *DROPPED)
    if json.loads((out / "fxcompress.json").read_text())["loads_with"] != "graph":
        again = stock(out)
    else:
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(out)
        again = fxcompress.load(out)
    assert_same(again, silenced(originals.model(name), 1))


@pytest.mark.parametrize("name", ["mamba2", "nemotron_h", "bamba"])
def test_half_of_the_ssm_heads_is_half_of_every_group_and_is_reloaded(name, saved):
    small, out = saved(name, *SSM_HEADS)
    for key, before in originals.model(name).state_dict().items():
        if key.endswith(".A_log"):
            groups = [head // 4 for head in rows_kept(before[:, None], small.program.state[key][:, None])]
            assert groups == [0, 0, 1, 1, 2, 2]
    assert_same(fxcompress.load(out), small)


@pytest.mark.parametrize(("name", "wanted"), [("qwen3", HEADS_AND_FFN), ("mamba2", SSM_HEADS), ("nemotron_h", DROPPED)])
def test_the_reloaded_model_is_smaller_and_holds_weights_alone_without_masks(name, wanted, saved, tmp_path):
    small, out = saved(name, *wanted)
    model, before = stock(out), originals.model(name)
    before.save_pretrained(tmp_path / "dense")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in small.parameters())
    assert count < sum(parameter.numel() for parameter in before.parameters())
    (file,) = out.glob("*.safetensors")
    assert file.stat().st_size < (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert sum(tensor.numel() for tensor in load_file(file).values()) == count


@pytest.mark.parametrize(
    ("name", "p"),
    [
        ("llama", PruneFFN(ratio=0.5, layers="*.layers.1")),  # no config says widths by layer
        ("mamba2", PruneSSMHeads(size=9)),  # hidden_size * expand must be heads * channels
    ],
)
def test_what_no_config_can_say_is_never_loaded_into_other_shapes(name, p, saved):
    small, out = saved(name, p)
    model, notes = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(notes.values()), notes
    assert sum(t.numel() for t in model.parameters()) == sum(t.numel() for t in small.parameters())
    assert torch.equal(logits(fxcompress.load(out)), logits(small))
