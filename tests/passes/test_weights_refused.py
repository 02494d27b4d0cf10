"""What cannot be pruned is refused with a sentence: before a model is there, before work, or at the node at fault."""

from __future__ import annotations

import pytest
import torch

import fxcompress
from fxcompress import CompressError
from fxcompress.passes import PruneWeights
from tests import models

IDS = models.ids(4, 30)
BATCHES = [{"input_ids": IDS}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of sparsity=0.5, the part to remove, and pattern='2:4'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of"),
        ({"sparsity": 1.5}, "outside"),
        ({"pattern": "4:2"}, "no pattern"),
        ({"pattern": "0.5"}, "no N:M pattern: write 2:4"),
        ({"sparsity": 0.5, "method": "obs"}, "method='obs' is unknown"),
        ({"sparsity": 0.5, "mask": "M"}, "with sparsity= it is 'S'"),
        ({"sparsity": 0.5, "mask": "S", "method": "wanda"}, "mask= is an option of method='mrp'"),
        ({"pattern": "2:4", "compensation": "L"}, "rules are 'S' and 'M'"),
        ({"sparsity": 0.5, "damping": 0.1, "method": "wanda"}, "inverts nothing"),
        ({"sparsity": 0.5, "damping": -1.0}, "outside"),
        ({"pattern": "2:4", "allocation": "owl"}, "2:4 is one for all"),
        ({"sparsity": 0.95, "allocation": "owl"}, "outside"),
        ({"pattern": "16:32"}, "601,080,390 sets a group, too many to try: .* mask='S'"),
        ({"sparsity": 0.5, "per": "column"}, "per='column' is unknown"),
        ({"pattern": "2:4", "per": "row"}, "2:4 is one for every group"),
        ({"sparsity": 0.5, "allocation": "erk"}, "there are uniform and owl"),
    ],
)
def test_contradictions_are_refused_before_a_model_is_there(options: dict, said: str):
    with pytest.raises(CompressError, match=said):
        PruneWeights(**options)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama", {"sparsity": 0.5, "targets": "*.conv1d.weight"}, "names none of the 22 matrices"),
        ("llama", {"sparsity": 0.5, "skip": "nothing"}, "skip='nothing' names none"),
        ("llama", {"sparsity": 0.5, "skip": "*"}, "no matrix is left to prune"),
        ("llama", {"sparsity": 1e-4}, r"q_proj.weight: sparsity=0.0001 of 48 rows of 48 would remove nothing"),
        (
            "llama",
            {"sparsity": 0.01, "per": "row"},
            r"q_proj.weight: sparsity=0.01 of 48 rows of 48 would remove nothing",
        ),
        (
            "llama",
            {"sparsity": 0.9999999},
            r"q_proj.weight: sparsity=0.9999999 of 48 rows of 48 would remove everything",
        ),
        ("mamba", {"pattern": "2:4"}, r"dt_proj.weight: 2:4 needs groups of 4 .* leave it out by skip="),
        ("mixtral", {"sparsity": 0.5, "allocation": "owl"}, "inside the experts: skip them"),
    ],
)
def test_what_a_model_cannot_have_is_refused_before_work(name: str, options: dict, said: str):
    with pytest.raises(CompressError, match=said):
        fxcompress.apply(models.captured(name, torch.float32), [PruneWeights(**options)], calibration=BATCHES)


def test_calibration_is_asked_for_unless_magnitude_does_without():
    program = models.captured("llama", torch.float32)
    with pytest.raises(
        CompressError, match="PruneWeights runs the pruned model on text: pass calibration=, batches of token ids"
    ):
        fxcompress.apply(program, [PruneWeights(sparsity=0.5)])
    assert fxcompress.apply(program, [PruneWeights(sparsity=0.5, method="magnitude")]).program.sparse


def test_batches_with_inputs_that_the_model_does_not_take_are_refused():
    with pytest.raises(CompressError, match=r"does not fit the model: unexpected inputs .*labels"):
        fxcompress.apply(
            models.captured("llama", torch.float32),
            [PruneWeights(sparsity=0.5)],
            calibration=[{"input_ids": IDS, "labels": IDS}],
        )


def test_inputs_that_are_not_finite_are_named():
    model = models.tiny("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = 3e38
    with pytest.raises(CompressError, match=r"not finite, at .* of model.layers"):
        fxcompress.apply(model, [PruneWeights(sparsity=0.5)], calibration=BATCHES, verify=False)
