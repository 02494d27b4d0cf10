"""The axes of the package's models are found, and every pass that applies cuts them by all laws.

Run by test_mamba_ssm_models.py in a process of its own.
"""

from __future__ import annotations

import re

import pytest
import torch

import fxcompress
from fxcompress import CompressError, capture
from fxcompress.axes import AxisMap
from fxcompress.passes import RemoveLayers
from tests import matrix
from tests.mamba_package import zoo

_ALWAYS = {"residual width", "layers"}
_SCAN = {"SSM heads", "SSM channels", "SSM state"}
_SCANS = {*_SCAN, "SSM groups"}
APPLIES: dict[str, set[str]] = {
    "mamba": _ALWAYS | {"SSM channels", "SSM state", "latent ranks"},
    "mamba2": _ALWAYS | _SCAN,
    "groups": _ALWAYS | _SCANS,
    "mlp": _ALWAYS | _SCANS | {"FFN neurons"},
    "beside": _ALWAYS | _SCANS | {"FFN neurons"},
    "attention": _ALWAYS | _SCANS | {"query heads", "KV heads", "query and key channels", "value channels"},
    "not fused": _ALWAYS | _SCANS,
}
ROLES = {
    "SSM heads": "ssm_head",
    "SSM groups": "ssm_group",
    "SSM channels": "ssm_channel",
    "SSM state": "ssm_state",
    "latent ranks": "latent_rank",
    "FFN neurons": "ffn_neuron",
    "KV heads": "kv_head",
    "residual width": "residual",
}


@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_the_axes_are_found(name):
    found = {role for group in zoo.captured(name).get(AxisMap).groups if not group.pinned for role in group.roles}
    assert {what for what, role in ROLES.items() if role in found} == APPLIES[name] & ROLES.keys()


DECIDED = (
    r"dim of the model's output|addressed by the input 'input_ids'"  # its two ends
    "|kernel positions"  # of a convolution over the past
    "|taken out by its position"  # keys are one thing and values another
    "|number of repeats is written in the graph"  # of keys and values for every query head
)


@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_what_stays_pinned_is_a_decision(name):
    reasons = {why for group in zoo.captured(name).get(AxisMap).groups for why in group.pinned}
    assert {why for why in reasons if not re.search(DECIDED, why)} == set()


CELLS = [(name, what) for name in zoo.CONFIGS for what in matrix.PASSES if what in APPLIES[name]]


@pytest.mark.parametrize(("name", "what"), CELLS, ids=lambda v: str(v).replace(" ", "-"))
def test_asked_is_got_and_every_law_holds(name, what):
    small = fxcompress.apply(zoo.captured(name).in_float64(), [matrix.PASSES[what]])
    (entry,) = small.report.passes
    assert entry["after"]["parameters"] < entry["before"]["parameters"]
    cut = [row for row in entry["rows"] if not row["why"]]
    assert cut
    assert all(0 < row["got"] <= row["of"] and abs(row["got"] - row["asked"]) <= row["step"] / 2 for row in cut)
    assert all(law["error"] is None or law["error"] <= 1e-9 for law in entry["laws"]), entry["laws"]


@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_every_pass_applies_or_says_that_there_is_nothing_of_its_kind(name):
    program = zoo.captured(name)
    for what in matrix.PASSES.keys() - APPLIES[name] - {"layers"}:
        with pytest.raises(CompressError, match=r"in this model|nearest ratio"):
            matrix.PASSES[what].check(program)


@pytest.mark.parametrize("in_fp32", [True, False])
def test_a_layer_is_what_is_removed_however_the_stream_is_kept(in_fp32):
    """A block gives the stream and what the next one is to add, in bfloat16 or, with all casts, in float32."""
    model = zoo.language_model("mlp", residual_in_fp32=in_fp32).to(torch.bfloat16)
    small = fxcompress.apply(capture(model, zoo.EXAMPLE), [RemoveLayers(layers=(1,))])
    left = {name.split(".")[2] for name in small.program.state if name.startswith("backbone.layers.")}
    assert left == {"0", "2"}
    assert "residual" in {role for group in small.program.get(AxisMap).groups for role in group.roles}
