"""FP8: torchao's products against the recipe's formulas written out, and what stays as it was."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress
from fxcompress import CompressError
from fxcompress.distillation.float8 import Float8, convertible, in_float8
from fxcompress.export.choose import Choice
from fxcompress.passes import PruneFFN
from tests import models
from tests.distill.quick import distilled, quick

pytestmark = pytest.mark.usefixtures("torchao")
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
EMULATED = Float8(keep_first=0, keep_last=0, emulate=True)


@pytest.fixture(scope="module")
def torchao() -> Iterator[None]:
    """The package, which tools/setup keeps apart."""
    place = str(Path(sysconfig.get_path("purelib")).parents[2] / "torchao")
    sys.path.append(place)
    yield
    sys.path.remove(place)


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """As the recipe has it: scaled so that the largest is the format's largest, rounded, and back; float64."""
    scale = (LARGEST[kind] / x.abs().max().double()).float().double()
    scaled = (x.double() * scale).clamp(-LARGEST[kind], LARGEST[kind])
    return scaled.float().to(kind).double() / scale


def by_hand(x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and the gradients of inputs and weights, for gradients g of the outputs."""
    x8, w8, g8 = rounded(x, torch.float8_e4m3fn), rounded(w, torch.float8_e4m3fn), rounded(g, torch.float8_e5m2)
    return x8 @ w8.T, g8 @ w8, g8.T @ x8


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b).norm() / b.norm())


@given(st.integers(0, 1 << 16), st.sampled_from([1e-3, 1.0, 300.0]))
def test_products_forward_and_backward_are_those_of_the_recipe(seed: int, scale: float):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 48, bias=False))
    x, g = (scale * torch.randn(16, 32)).requires_grad_(), torch.randn(16, 48) / scale
    with in_float8(model, EMULATED, ["0"]):
        y = model(x)
        y.backward(g)
    wanted = by_hand(x.detach(), model[0].weight.detach(), g)
    assert max(map(relative, (y, x.grad, model[0].weight.grad), wanted)) < 1e-5
    assert relative(y, (x @ model[0].weight.T).double()) > 1e-3, "rounding shows"


@pytest.mark.parametrize("name", ["llama", "nemotron_h", "mixtral"])
def test_head_routers_and_outer_layers_stay_as_they_are(name):
    model = models.tiny(name)
    every, inner = convertible(model, EMULATED), convertible(model, Float8(keep_first=1, keep_last=1, emulate=True))
    assert "lm_head" not in every
    assert not any(name.endswith((".gate", ".router")) for name in every)
    count = model.config.num_hidden_layers
    assert {int(name.split(".")[2]) for name in inner} <= set(range(1, count - 1))
    assert set(inner) == {name for name in every if 0 < int(name.split(".")[2]) < count - 1}


def test_afterwards_the_model_is_the_one_it_was_with_its_own_parameters():
    model = models.tiny("llama")
    before = dict(model.named_parameters())
    kinds = [type(module) for module in model.modules()]
    with in_float8(model, EMULATED) as names:
        assert {type(model.get_submodule(name)).__name__ for name in names} == {"Float8Linear"}
        model(input_ids=models.ids(2, 8)).logits.sum().backward()
        with torch.no_grad():
            model.get_submodule(names[0]).weight.add_(1)
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(parameter.grad is not None for parameter in before.values())


def test_after_an_error_too():
    model = models.tiny("llama")
    with pytest.raises(ZeroDivisionError), in_float8(model, EMULATED):
        1 / 0  # noqa: B018
    assert not any(type(module).__name__ == "Float8Linear" for module in model.modules())


def test_without_the_hardware_it_is_refused_and_nothing_is_changed():
    model = models.tiny("llama")
    with pytest.raises(CompressError, match=r"8\.9 or more, and the model is on cpu"), in_float8(model, Float8(0, 0)):
        pass
    assert not any(type(module).__name__ == "Float8Linear" for module in model.modules())


def test_where_no_layer_is_left_it_says_so():
    with pytest.raises(CompressError, match="no linear layer is left to convert besides the first 4 and last 4"):
        convertible(models.tiny("llama"), Float8())


@pytest.mark.parametrize("n", [-1, 1.5])
def test_a_number_of_layers_is_one(n):
    with pytest.raises(CompressError, match="keep_first"):
        Float8(keep_first=n)


@pytest.mark.slow
def test_a_student_is_trained_in_it_and_comes_back_without(held_out):
    student, teacher = models.tiny("llama", 1), models.tiny("llama")
    found = distilled(student, teacher, held_out=held_out, training=quick(steps=15, float8=EMULATED))
    assert found.after.kl < 0.9 * found.before.kl
    assert [type(m) for m in found.student.modules()] == [type(m) for m in student.modules()]
    whole = distilled(student, teacher, training=quick(steps=15))
    assert found.losses != whole.losses, "it was really computed in fewer bits"
    assert found.losses[-1][1] == pytest.approx(whole.losses[-1][1], rel=0.1)


def test_a_student_that_only_a_graph_expresses_is_refused(monkeypatch):
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.25, scope="global")])
    monkeypatch.setattr("fxcompress.distillation.student.choose", lambda *_: Choice("graph", None, "for a reason"))
    with pytest.raises(
        CompressError, match=r"no config says what the student is \(for a reason\): it trains without FP8"
    ):
        distilled(small, models.tiny("llama"), training=quick(float8=EMULATED))
