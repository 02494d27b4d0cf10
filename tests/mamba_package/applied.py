"""Passes are applied to the package's models as to any module; results are saved and loaded.

Run by test_mamba_ssm_models.py in a process of its own.
"""

from __future__ import annotations

import re

import pytest
import torch

import fxcompress
from fxcompress.passes import PruneSSMHeads, PruneSSMState
from tests import models
from tests.mamba_package import zoo
from tests.mamba_package.package import references

PASSES = [PruneSSMHeads(ratio=0.5), PruneSSMState(ratio=0.25)]


@torch.no_grad()
def test_applying_passes_first_compares_the_graph_with_the_model():
    with references():
        small = fxcompress.apply(zoo.language_model("mamba2"), PASSES, example_inputs=zoo.EXAMPLE)
    assert small.report.capture_error < 1e-5


def test_a_model_that_does_not_run_here_is_compressed_and_the_report_says_what_was_not_compared():
    small = fxcompress.apply(zoo.language_model("mamba2"), PASSES, example_inputs=zoo.EXAMPLE)
    assert small.report.capture_error is None
    assert re.match("not checked: the model itself does not run", small.report.notes["captured equals model"])


@pytest.mark.parametrize("name", zoo.CONFIGS)
@torch.no_grad()
def test_what_is_saved_is_what_is_loaded(tmp_path, name):
    p = PruneSSMState(ratio=0.25)
    example = zoo.EXAMPLE
    small = fxcompress.apply(zoo.language_model(name), [p], example_inputs=example)
    out = small.save_pretrained(tmp_path / "out")
    again = fxcompress.load(out, model=zoo.language_model(name), example_inputs=example)
    ids = models.ids(3, 11)
    torch.testing.assert_close(again(ids).logits, small(ids).logits, rtol=0, atol=0)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in zoo.language_model(name).parameters())
