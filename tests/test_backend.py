"""``torch.compile(model, backend="fxcompress")``: found without an import, same results, options passed on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fxcompress
from fxcompress.passes import PruneFFN, PruneSSMHeads
from tests import models


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def test_the_backend_is_found_without_importing_fxcompress():
    code = "import sys, torch; print('fxcompress' in torch._dynamo.list_backends(), 'fxcompress' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "False"]


@pytest.mark.parametrize("name", ["llama", "mamba2"])
@torch.no_grad()
def test_a_compressed_model_compiles_to_the_same_logits_in_one_graph(name):
    p = PruneSSMHeads(ratio=0.5) if name == "mamba2" else PruneFFN(ratio=0.25)
    small = fxcompress.apply(models.captured(name, torch.float32), [p])
    compiled = torch.compile(small, backend="fxcompress", fullgraph=True)
    ids = models.ids(2, 12)
    torch.testing.assert_close(compiled(input_ids=ids).logits, small(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_eager_model_compiles_to_the_same_logits():
    model = models.tiny("llama")
    compiled = torch.compile(model, backend="fxcompress")
    ids = models.ids(2, 12)
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_compiled_graph():
    small = fxcompress.apply(models.captured("mamba2", torch.float32), [PruneSSMHeads(ratio=0.5)])
    compiled = torch.compile(small, backend="fxcompress")
    ids = models.ids(2, 12)
    names, parameters = zip(*small.program.parameters(), strict=True)
    ours = torch.autograd.grad(compiled(input_ids=ids).logits.square().mean(), parameters)
    eager = torch.autograd.grad(small(input_ids=ids).logits.square().mean(), parameters)
    for name, a, b in zip(names, ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_an_unknown_option_of_ours_is_refused():
    compiled = torch.compile(models.tiny("llama"), backend="fxcompress", options={"fxcompress.magic": True})
    with pytest.raises(Exception, match=r"unknown options of the fxcompress backend: fxcompress\.magic"):
        compiled(models.ids(1, 4), use_cache=False)


@torch.no_grad()
def test_inductors_own_options_are_passed_on():
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.25)])
    compiled = torch.compile(small, backend="fxcompress", options={"max_autotune": False})
    ids = models.ids(1, 5)
    torch.testing.assert_close(compiled(input_ids=ids).logits, small(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
