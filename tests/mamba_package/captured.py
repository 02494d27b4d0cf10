"""The captured graph computes what the package's own references do.

Run by test_mamba_ssm_models.py in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

import fxcompress
from fxcompress import CaptureError, capture
from tests import models
from tests.mamba_package import zoo
from tests.mamba_package.package import NAMESPACES, REFERENCES, mamba2, mamba2_simple, references

SIZES = [(1, 1), (1, 50), (5, 17)]


@pytest.mark.parametrize("name", zoo.CONFIGS)
@torch.no_grad()
def test_logits_equal_those_by_the_packages_references_at_sizes_not_seen_at_capture(name):
    program, model = zoo.captured(name), zoo.referable(zoo.language_model(name))
    for batch, length in SIZES:
        ids = models.ids(batch, length)
        with references():
            theirs = model(ids).logits
        torch.testing.assert_close(program(ids).logits, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", zoo.LAYERS)
@torch.no_grad()
def test_a_layer_by_itself_computes_what_the_packages_references_do(name):
    module = zoo.layer(name)
    program = capture(module, torch.randn(2, 24, 48))
    for batch, length in SIZES:
        x = torch.randn(batch, length, 48)
        with references():
            theirs = zoo.referable(module)(x)
        torch.testing.assert_close(program(x), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_sixteen_bits_are_normalised_and_added_in_float32(dtype):
    model = zoo.language_model("mlp").to(dtype)
    logits = capture(model, zoo.EXAMPLE)(models.ids(3, 17)).logits
    exact = zoo.captured("mlp")(models.ids(3, 17)).logits
    assert logits.dtype == dtype
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_scans_and_convolutions_are_one_node_each():
    program = zoo.captured("attention")
    ops = [str(n.target).split(".")[1] for n in program.graph.nodes if str(n.target).startswith("fxcompress.")]
    assert sorted(ops) == ["causal_conv1d"] * 3 + ["ssd_scan"] * 2


def names() -> list[tuple]:
    return [(space.__name__, name, vars(space).get(name)) for space in NAMESPACES for name in REFERENCES]


def test_capture_leaves_no_trace_in_the_package():
    before = names()
    capture(zoo.language_model("mamba"), zoo.EXAMPLE)
    assert names() == before


def test_capture_leaves_no_trace_after_an_error(monkeypatch):
    before = names()
    monkeypatch.setattr(fxcompress.compat, "export", lambda *_: 1 / 0)
    with pytest.raises(CaptureError):
        capture(zoo.language_model("groups"), zoo.EXAMPLE)
    assert names() == before


def test_a_state_to_begin_with_is_refused():
    module = mamba2_simple.Mamba2Simple(48, d_state=7, headdim=8, learnable_init_states=True)
    with pytest.raises(CaptureError, match=r"'initial_states'.*begins with a state of zero"):
        capture(module, torch.randn(2, 24, 48))


@pytest.mark.parametrize("fused", [True, False])
def test_several_sequences_in_a_row_are_refused(fused):
    module = mamba2.Mamba2(48, d_state=7, headdim=8, use_mem_eff_path=fused)
    packed = {"u": torch.randn(2, 24, 48), "seq_idx": torch.zeros(2, 24, dtype=torch.int32)}
    with pytest.raises(CaptureError, match=r"'seq_idx'.*one sequence"):
        capture(module, packed)
