"""The loss that ranks is the cross-entropy of the next real token, whatever padding and batches look like."""

from __future__ import annotations

import math

import pytest
import torch

from fxcompress import CompressError, capture
from fxcompress.searching.loss import zero_shot_loss
from tests import models, plain


@pytest.fixture(scope="module")
def program():
    return models.captured("llama", torch.float32)


def test_it_is_the_loss_of_transformers_where_there_is_no_padding(program):
    ids = models.ids(3, 17)
    with torch.no_grad():
        theirs = models.tiny("llama")(ids, labels=ids).loss
    assert zero_shot_loss(program, [{"input_ids": ids}]) == pytest.approx(float(theirs), rel=1e-5)


def test_every_token_counts_the_same_however_batches_are_made(program):
    long, short = models.ids(2, 20, seed=1), models.ids(5, 4, seed=2)
    each = [zero_shot_loss(program, [{"input_ids": ids}]) for ids in (long, short)]
    both = zero_shot_loss(program, [{"input_ids": long}, {"input_ids": short}])
    assert both == pytest.approx((2 * 19 * each[0] + 5 * 3 * each[1]) / (2 * 19 + 5 * 3), rel=1e-5)


def test_padding_neither_predicts_nor_is_predicted(program):
    ids, mask = models.left_padded(3, 12)
    rows = [{"input_ids": row[real.bool()][None]} for row, real in zip(ids, mask, strict=True)]
    padded = zero_shot_loss(program, [{"input_ids": ids, "attention_mask": mask}])
    assert padded == pytest.approx(zero_shot_loss(program, rows), rel=1e-4)


def test_what_stands_in_the_padding_changes_nothing_and_a_token_does(program):
    ids, mask = models.left_padded(3, 12)
    before = zero_shot_loss(program, [{"input_ids": ids, "attention_mask": mask}])
    junk = torch.where(mask.bool(), ids, 50)
    assert zero_shot_loss(program, [{"input_ids": junk, "attention_mask": mask}]) == pytest.approx(before, rel=1e-5)
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 1) % 96
    assert zero_shot_loss(program, [{"input_ids": other, "attention_mask": mask}]) != pytest.approx(before, rel=1e-5)


def test_a_model_that_gives_nan_has_no_finite_loss(program):
    broken = program.map_state(lambda name, t: t * math.inf if "norm" in name else t)
    assert not math.isfinite(zero_shot_loss(broken, [{"input_ids": models.ids(1, 5)}]))


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ({"attention_mask": torch.ones(1, 5, dtype=torch.long)}, "has no input_ids"),
        ({"input_ids": models.ids(4, 1)}, "no token that follows another one"),
        ({"input_ids": models.ids(2, 3), "attention_mask": torch.eye(2, 3)}, "no token that follows another one"),
        ({"input_ids": models.ids(2, 3) + 1000}, "token ids without an embedding"),
        ({"input_ids": models.ids(2, 3), "pixels": torch.ones(2, 3)}, "does not fit the model: unexpected inputs"),
    ],
)
def test_batches_that_cannot_be_scored_are_refused(program, batch, why):
    with pytest.raises(CompressError, match=why):
        zero_shot_loss(program, [batch])


def test_a_model_without_logits_is_refused():
    program = capture(plain.ResNet().eval(), torch.randn(2, 3, 16, 16))
    with pytest.raises(CompressError, match="has no input_ids"):
        zero_shot_loss(program, [{"x": torch.randn(2, 3, 16, 16)}])
