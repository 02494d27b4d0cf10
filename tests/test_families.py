"""Every family of decoders, and others for generality: captured, cut along every axis that it has, saved and loaded."""

from __future__ import annotations

import functools
import json
import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

import fxcompress
from fxcompress import CaptureError, CompressError, Program, capture
from fxcompress.axes import AxisMap
from fxcompress.passes import PruneAxes, PruneConvChannels, PruneEmbedding, PruneExperts, PruneFFN, RemoveLayers
from tests import matrix, models, plain

NEW = [name for name in models.ALL if name not in models.FAMILIES]  # the core's families have tests of their own
SIZES = [(1, 1), (1, 50), (5, 17)]


@functools.cache
def pair(name: str) -> tuple[nn.Module, Program]:
    model = models.tiny(name)
    return model, capture(model)


@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_logits_equal_the_eager_models_at_sizes_not_seen_at_capture(name):
    model, program = pair(name)
    for batch, length in SIZES:
        ids = models.ids(batch, length)
        ours, theirs = program(ids).logits, model(ids, use_cache=False).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=f"{batch} x {length}")


@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_left_padding_gives_the_eager_logits_at_every_real_token(name):
    model, program = pair(name)
    ids, mask = models.left_padded(3, 19)
    ours = program(ids, attention_mask=mask).logits
    theirs = model(ids, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)
    assert (ours[real] - program(ids).logits[real]).abs().max() > 1e-3  # the mask is not ignored


CELLS = [(name, what) for name in NEW for what in matrix.PASSES if what in matrix.APPLIES[name]]


@pytest.mark.parametrize(("name", "what"), CELLS, ids=lambda v: str(v).replace(" ", "-"))
def test_asked_is_got_and_every_law_holds(name, what):
    small = fxcompress.apply(models.captured(name), [matrix.PASSES[what]])
    (entry,) = small.report.passes
    assert entry["after"]["parameters"] < entry["before"]["parameters"]
    cut = [row for row in entry["rows"] if not row["why"]]
    assert cut
    assert all(0 < row["got"] <= row["of"] and abs(row["got"] - row["asked"]) <= row["step"] / 2 for row in cut)
    assert all(law["error"] is None or law["error"] <= 1e-9 for law in entry["laws"]), entry["laws"]


@pytest.mark.parametrize("name", NEW)
def test_every_pass_applies_or_says_that_there_is_nothing_of_its_kind(name):
    """``matrix.APPLIES`` is what a family has, no more and no less."""
    program = models.captured(name)
    for what, p in matrix.PASSES.items():
        if what in matrix.APPLIES[name]:
            p.check(program)
            continue
        with pytest.raises(CompressError, match=r"in this model|nearest ratio"):
            p.check(program)


DECIDED = {
    "its two ends are what the model takes and gives": r"dim of the model's output|addressed by the input '\w+'",
    "a convolution over the past needs all of its taps": "kernel positions",
    "a gated neuron is a gate and a value": "a gated neuron needs its gate and its value",
    "positions that the model counts itself": r"addressed by data, at embedding",
    "a rotary pair is two channels": "a slice takes one of every few indices",
}


@pytest.mark.parametrize("name", models.ALL)
def test_what_stays_pinned_is_a_decision(name):
    """Nothing is pinned for want of a rule, or because a view did not align."""
    axes = models.captured(name).get(AxisMap)
    reasons = {why for g in axes.groups for why in g.pinned}
    assert {why for why in reasons if not any(re.search(known, why) for known in DECIDED.values())} == set()


@pytest.mark.parametrize("name", NEW)
def test_what_is_saved_is_what_is_loaded(tmp_path, name):
    p = PruneExperts(ratio=1 / 3) if "experts" in matrix.APPLIES[name] else PruneFFN(ratio=0.25)
    small = fxcompress.apply(models.captured(name, torch.float32), [p])
    out = small.save_pretrained(tmp_path / "out")
    assert json.loads((out / "fxcompress.json").read_text())["loads_with"] == "transformers"
    stock = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    ids = models.ids(2, 11)
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_constant_that_a_class_derives_from_a_size_is_named(tmp_path, name):
    """Embeddings are multiplied by the root of the width; the class would take the new root."""
    small = fxcompress.apply(models.captured(name, torch.float32), [PruneEmbedding(ratio=0.25)])
    with pytest.raises(
        fxcompress.NotExpressible, match=r"model\.embed_tokens\.embed_scale is 6 there and 6\.9282 here"
    ):
        small.to_transformers()
    again = fxcompress.load(small.save_pretrained(tmp_path / "out"))
    assert again.report.reload_error <= 1e-6


REFUSED = {
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 8, "num_kv_heads": 4, "new_decoder_architecture": True},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 96, "lru_width": 64},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_the_replacements_do_not_reach_is_refused_with_the_reason(name):
    config = AutoConfig.for_model(name, vocab_size=96, hidden_size=64, **REFUSED[name])
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(CaptureError, match="does not go through any function that capture replaces"):
        capture(model)


# ---- other models ----------------------------------------------------------------------------------------------------

_ENCODER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 80}


@functools.cache
def other(name: str) -> Program:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 16, 16)
    model, inputs = {
        "bert": (lambda: BertForMaskedLM(BertConfig(vocab_size=96, max_position_embeddings=64, **_ENCODER)), None),
        "vit": (
            lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=5, **_ENCODER)),
            {"pixel_values": image},
        ),
        "resnet": (plain.ResNet, image),
        "densenet": (plain.DenseNet, image),
        "convnext": (plain.ConvNeXt, image),
    }[name]
    return capture(models.perturb(model()).eval(), inputs).in_float64()


OTHERS = [
    *((name, PruneFFN(ratio=0.25)) for name in ("bert", "vit", "convnext")),
    *((name, PruneEmbedding(ratio=0.25)) for name in ("bert", "vit", "resnet", "convnext")),
    *((name, PruneAxes(ratio=0.5)) for name in ("bert", "vit", "resnet", "densenet", "convnext")),
    *((name, PruneConvChannels(ratio=0.5)) for name in ("resnet", "densenet")),
    *((name, RemoveLayers(layers=(1,))) for name in ("vit",)),
]


@pytest.mark.parametrize(("name", "p"), OTHERS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_other_models_are_cut_by_the_same_laws(name, p):
    small = fxcompress.apply(other(name), [p])
    (entry,) = small.report.passes
    assert entry["after"]["parameters"] < entry["before"]["parameters"]
    assert all(law["error"] is None or law["error"] <= 1e-9 for law in entry["laws"]), entry["laws"]


def test_channels_that_are_put_beside_others_are_cut_where_all_later_layers_read_them():
    axes = other("densenet").get(AxisMap)
    group = axes["block1.0.conv2.weight[0]"]  # what the first layer adds
    readers = {slot.name for slot in group.slots if slot.name.endswith(("conv1.weight", "transition.2.weight"))}
    assert readers == {"block1.1.conv1.weight", "block1.2.conv1.weight", "transition.2.weight"}
