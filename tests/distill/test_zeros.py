"""A sparse student stays sparse, whatever the optimiser does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress import CompressError
from fxcompress.distillation.zeros import Zeros
from fxcompress.passes import PruneWeights
from fxcompress.sparse import broken
from tests import models
from tests.distill.quick import distilled, quick

UP = "model.layers.0.mlp.up_proj.weight"


def pruned(name: str = "llama", pattern: object = 0.5) -> fxcompress.CompressedModel:
    options = {"sparsity": pattern} if isinstance(pattern, float) else {"pattern": pattern}
    return fxcompress.apply(models.tiny(name), [PruneWeights(method="magnitude", **options)])


def pruned_in_place() -> nn.Module:
    """A model with zeros that nobody declared."""
    model = models.tiny("llama", 1)
    weight = model.get_parameter(UP)
    weight.data[:, ::2] = 0
    return model


def two_layers() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data = torch.eye(4) + 1
    model[0].weight.data[:, 0] = 0
    model[1].weight.data.zero_()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), [("llama", 0.5), ("llama", "2:4"), ("mamba2", "2:4")])
def test_a_pruned_student_keeps_its_pattern_and_can_be_saved(name, pattern, tmp_path):
    small = pruned(name, pattern)
    found = distilled(small, models.tiny(name))
    assert found.student.program.sparse == small.program.sparse != {}
    assert broken(found.student.program, found.student.program.sparse) == {}
    found.student.save_pretrained(tmp_path / "out")
    assert fxcompress.load(tmp_path / "out").program.sparse == small.program.sparse


def test_what_is_kept_is_trained():
    small = pruned()
    found = distilled(small, models.tiny("llama"))
    name = next(iter(small.program.sparse))
    before, after = small.program.read(name), found.student.program.read(name)
    assert after[before == 0].eq(0).all()
    assert (after != before)[before != 0].float().mean() > 0.9


def test_zeros_that_are_not_held_are_filled_and_refused(monkeypatch, tmp_path):
    """The planted fault."""
    monkeypatch.setattr(Zeros, "__init__", lambda self, *_: self.__dict__.update(kept={}, parameters={}, hooks=[]))
    found = distilled(pruned(), models.tiny("llama"))
    with pytest.raises(CompressError, match="weights that have to be zero are not: train with its zeros held"):
        found.student.save_pretrained(tmp_path / "out")


def test_zeros_that_nobody_declared_are_held_and_told():
    found = distilled(pruned_in_place(), models.tiny("llama"))
    assert found.student.get_parameter(UP)[:, ::2].eq(0).all()
    assert found.student.get_parameter(UP)[:, 1::2].ne(0).any()
    assert not found.student.get_parameter(UP)._backward_hooks, "the trained model is its owner's"
    assert f"1 matrices have zeros of no declared pattern, which are held: {UP}" in found.notes


def test_a_dense_student_has_no_held_zero():
    assert Zeros(models.tiny("llama")).kept == {}


def test_a_matrix_that_is_zero_altogether_is_trained():
    assert list(Zeros(two_layers()).kept) == ["0.weight"]


def test_its_zeros_are_held_if_they_are_declared():
    assert set(Zeros(two_layers(), ["1.weight"]).kept) == {"0.weight", "1.weight"}


def test_a_held_weight_has_no_gradient():
    """Or else clipping would count what is not trained."""
    model = two_layers()
    model[1].weight.data.fill_(1)
    Zeros(model)
    model(torch.ones(1, 4)).square().sum().backward()
    gradient = model[0].weight.grad
    assert gradient[:, 0].eq(0).all()
    assert gradient[:, 1:].ne(0).all()


def test_an_optimiser_that_moves_everything_moves_no_zero():
    model = two_layers()
    zeros = Zeros(model)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    zeros.restore()
    assert model[0].weight[:, 0].eq(0).all()


def test_weight_decay_and_noise_leave_zeros_alone():
    training = quick(weight_decay=0.5, more={"optim": "sgd"})
    found = distilled(pruned_in_place(), models.tiny("llama"), training=training)
    assert found.student.get_parameter(UP)[:, ::2].eq(0).all()
