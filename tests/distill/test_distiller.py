"""The loss that is trained on is the mean over real positions, computed from the models' own logits in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fxcompress import Objective
from fxcompress.distillation.distiller import Distiller
from fxcompress.distillation.halves import halves_of
from fxcompress.distillation.rows import Rows, collate
from fxcompress.distillation.teacher import Online
from tests import models

IDS, MASK = (x.flip(1) for x in models.left_padded(3, 10))
BATCH = collate(
    [Rows([{"input_ids": i, "attention_mask": m} for i, m in zip(IDS, MASK, strict=True)])[j] for j in range(3)]
)
FAMILIES = {"llama": 1e-9, "gemma2": 1e-9, "mamba2": 1e-5, "nemotron_h": 1e-5}  # error: some classes cast to float32


def pair(name: str, objective: Objective, chunk: int = 7) -> tuple[Distiller, torch.nn.Module, torch.nn.Module]:
    student, teacher = models.tiny(name, 1).double(), models.tiny(name, 0).double()
    distiller = Distiller(student, halves_of(student, IDS), Online(teacher, IDS), objective, chunk)
    return distiller, student, teacher


def real() -> torch.Tensor:
    """Positions whose next token is real and follows a real one."""
    return (MASK[:, 1:] & MASK[:, :-1]).bool()


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[:, :-1][real()]


def direct(student: torch.nn.Module, teacher: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        p = logits(teacher).softmax(-1)
    return (p * (p.log() - logits(student).log_softmax(-1))).sum(-1).mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_mean_divergence_of_the_logits_and_its_gradient_too(name):
    distiller, student, teacher = pair(name, Objective())
    loss = distiller(**BATCH)["loss"]
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in student.named_parameters()}
    student.zero_grad()
    expected = direct(student, teacher)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=FAMILIES[name])
    for n, p in student.named_parameters():
        assert (gradients[n] - p.grad).norm() < 10 * FAMILIES[name] * p.grad.norm(), n


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_of_the_student_and_none_of_the_teacher(name):
    distiller, student, teacher = pair(name, Objective(ce=1.0))
    distiller(**BATCH)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_that_is_not_detached_would_be_seen(monkeypatch):
    """The planted fault."""
    for step in ("targets", "said"):
        monkeypatch.setattr(Online, step, getattr(Online, step).__wrapped__)
    distiller, _, teacher = pair("llama", Objective())
    distiller(**BATCH)["loss"].backward()
    assert any(p.grad is not None for p in teacher.parameters())


def test_the_teacher_is_no_part_of_what_is_trained():
    distiller, student, _ = pair("llama", Objective())
    assert {id(p) for p in distiller.parameters()} == {id(p) for p in student.parameters()}


@pytest.mark.parametrize("chunk", [1, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    a, b = (pair("gemma2", Objective(ce=0.3), size)[0](**BATCH)["loss"] for size in (chunk, 7))
    assert a.item() == pytest.approx(b.item(), rel=1e-12)


def test_whole_logits_give_the_same_loss_and_gradient():
    by_halves, student, _ = pair("llama", Objective(ce=0.3))
    by_halves(**BATCH)["loss"].backward()
    whole, other, _ = pair("llama", Objective(ce=0.3))
    whole.halves = replace(whole.halves, body=lambda **x: other(**x, use_cache=False).logits, tail=lambda x: x)
    loss = whole(**BATCH)["loss"]
    loss.backward()
    for a, b in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-6, atol=1e-10)


def test_cross_entropy_is_that_of_the_text():
    distiller, student, teacher = pair("llama", Objective(ce=2.0))
    expected = direct(student, teacher) + 2 * F.cross_entropy(logits(student), IDS[:, 1:][real()])
    assert distiller(**BATCH)["loss"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_without_a_teacher_the_loss_is_the_cross_entropy():
    distiller, student, _ = pair("llama", Objective())
    distiller.teacher = None
    expected = F.cross_entropy(logits(student), IDS[:, 1:][real()])
    assert distiller(**BATCH)["loss"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_what_stands_in_the_padding_changes_nothing():
    distiller, _, _ = pair("llama", Objective(ce=1.0))
    other = {**BATCH, "input_ids": torch.where(MASK.bool(), IDS, 77)}
    assert distiller(**other)["loss"].item() == pytest.approx(distiller(**BATCH)["loss"].item(), rel=1e-12)


def test_a_forgotten_mask_is_seen():
    """The planted fault: padding counted as text."""
    distiller, student, teacher = pair("llama", Objective())
    forgotten = {**BATCH, "labels": IDS.clone()}
    assert distiller(**forgotten)["loss"].item() != pytest.approx(direct(student, teacher).item(), rel=1e-4)


def test_two_halves_of_a_batch_add_up_to_the_whole_when_divided_by_its_tokens():
    distiller, _, _ = pair("llama", Objective())
    count = int(real().sum())
    parts = [{name: value[rows] for name, value in BATCH.items()} for rows in (slice(0, 1), slice(1, 3))]
    summed = sum(distiller(**part, num_items_in_batch=count)["loss"] for part in parts)
    assert summed.item() == pytest.approx(distiller(**BATCH)["loss"].item(), rel=1e-12)


def test_a_batch_without_a_predicted_token_has_loss_zero_and_a_gradient():
    distiller, student, _ = pair("llama", Objective(ce="dynamic"))
    loss = distiller(**{**BATCH, "labels": torch.full_like(IDS, -100)})["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())
