"""A teacher is trained on the text that it will teach with, by cross-entropy alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fxcompress
from fxcompress import CompressError, Objective
from fxcompress.distillation.prepared import Request, prepared
from tests import models
from tests.distill.quick import distilled, quick


def test_the_loss_is_the_cross_entropy_of_the_text_and_falls(rows, held_out):
    teacher = models.tiny("llama")
    found = fxcompress.correct_teacher(teacher, rows, training=quick(steps=12), held_out=rows)
    with torch.no_grad():
        direct = F.cross_entropy(teacher(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert found.before.loss == pytest.approx(direct.item(), rel=1e-5)
    assert found.after.loss < found.before.loss
    assert found.before.kl is None
    assert found.of_teacher is None


def test_the_corrected_teacher_teaches(rows):
    teacher = models.tiny("llama")
    corrected = fxcompress.correct_teacher(teacher, rows, training=quick()).student
    assert type(corrected) is type(teacher)
    assert distilled(models.tiny("llama", 1), corrected).losses != distilled(models.tiny("llama", 1), teacher).losses


def test_by_default_it_is_slow(rows):
    assert fxcompress.distillation.run.CORRECTION.learning_rate == 2e-5


def test_distill_without_a_teacher_is_refused(rows):
    with pytest.raises(CompressError, match="the teacher is missing; correct_teacher trains on the text alone"):
        fxcompress.distill(models.tiny("llama"), None, rows)


def test_options_of_a_teacher_that_is_not_there_are_refused(rows):
    request = Request(models.tiny("llama"), None, rows, Objective(temperature=2.0), quick())
    with (
        pytest.raises(CompressError, match="without a teacher the loss is the text's cross-entropy"),
        prepared(request),
    ):
        pass
