"""Intermediate states: which places correspond, how far they are apart, and what is trained with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fxcompress
from fxcompress import CompressError, Objective
from fxcompress.distillation.distiller import Distiller
from fxcompress.distillation.halves import halves_of
from fxcompress.distillation.rows import collate, rows_of
from fxcompress.distillation.states import States, after_gaps, layers_of, pairs_of, recorded
from fxcompress.distillation.student import Student
from fxcompress.distillation.teacher import Online
from fxcompress.passes import PruneEmbedding, PruneFFN, RemoveLayers
from tests import models
from tests.distill.quick import distilled, quick

IDS = models.ids(3, 10)
DYNAMIC = Objective(states="dynamic")


@pytest.mark.parametrize("name", ["mamba2", "nemotron_h"])
def test_the_first_place_is_the_embedding_and_the_last_goes_into_the_norm(name):
    model = models.tiny(name)
    embedding, layers, norm = model.base_model.children()
    with torch.no_grad(), recorded(model, [0, len(layers)]) as found:
        hidden = model.base_model(IDS, use_cache=False).last_hidden_state
        assert found[0].equal(embedding(IDS))
        assert norm(found[len(layers)]).equal(hidden)


@pytest.mark.parametrize("name", ["llama", "nemotron_h", "gpt2", "zamba2"])
def test_places_are_those_that_transformers_calls_hidden_states(name):
    model = models.tiny(name)
    last = len(layers_of(model)[1])
    with torch.no_grad(), recorded(model, range(last + 1)) as found:
        hidden = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    for n in range(last):  # the last of theirs is behind the final norm
        assert found[n].equal(hidden[n]), n
    assert found[last].shape == hidden[last].shape


def test_no_hook_stays():
    model = models.tiny("llama")
    with recorded(model, [0, 3]):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("removed", "pairs"),
    [
        ({2, 3}, [(0, 0), (2, 4)]),  # in the middle
        ({3, 4, 5}, [(0, 0), (3, 6)]),  # the last: what leaves the student is what leaves the teacher
        ({0, 1}, [(0, 2)]),  # the first
        ({1, 4}, [(0, 0), (1, 2), (3, 5)]),
        (set(), [(0, 0), (4, 4)]),
    ],
)
def test_places_correspond_where_a_layer_that_stayed_begins(removed, pairs):
    assert after_gaps(removed, 6, closed=True) == pairs


def test_what_was_removed_and_keeps_its_number_moves_no_place():
    assert after_gaps({2, 3}, 6, closed=False) == [(0, 0), (4, 4)]


def test_pairs_follow_from_what_was_removed():
    teacher = models.tiny("nemotron_h")
    small = fxcompress.apply(teacher, [RemoveLayers(layers=[1]), PruneFFN(ratio=0.25), RemoveLayers(layers=[2])])
    removed = sorted(path for step in small.steps for path in step.remove)
    assert removed == ["model.layers.1", "model.layers.3"]
    assert pairs_of(Student.of(small), teacher, None) == [(0, 0), (2, 2), (4, 4)], "absent layers keep their numbers"


def test_layers_that_are_counted_anew_are_paired_by_their_old_numbers():
    teacher = models.tiny("llama")
    small = fxcompress.apply(teacher, [RemoveLayers(layers=[1])])
    assert pairs_of(Student.of(small), teacher, None) == [(0, 0), (1, 2)]


def test_pairs_follow_from_the_manifest_where_the_config_says_everything(saved, tmp_path):
    fxcompress.compress(saved("llama"), tmp_path / "small", [RemoveLayers(layers=[0])])
    assert pairs_of(Student.of(tmp_path / "small"), models.tiny("llama"), ((0, 1),)) == [(0, 1)]
    found = distilled(tmp_path / "small", saved("llama"), objective=DYNAMIC)
    assert len(found.losses) == 4


def states_of(pairs, student, teacher) -> States:
    return States(student, teacher, pairs, IDS)


def direct(states: States, student, teacher, pairs) -> torch.Tensor:
    ours, theirs = (m(input_ids=IDS, output_hidden_states=True).hidden_states for m in (student, teacher))
    apart = [1 - F.cosine_similarity(states.lift(ours[n]), theirs[m].detach(), dim=-1)[:, :-1].mean() for n, m in pairs]
    return sum(apart) / len(apart)


def test_the_loss_is_the_cosine_distance_by_one_shared_map_and_its_gradient_reaches_student_and_map():
    student, teacher = models.tiny("llama", 1).double(), models.tiny("llama").double()
    pairs = [(0, 0), (1, 2)]
    states = states_of(pairs, student, teacher).double()
    states.lift.weight.data += 0.1 * torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    objective = Objective(states=3.0)
    distiller = Distiller(student, halves_of(student, IDS), Online(teacher, IDS), objective, 7, states)
    rows = rows_of(IDS, None, 2)
    batch = collate([rows[i] for i in range(3)])
    loss = distiller(**batch)["loss"]
    loss.backward()
    got = [p.grad.clone() for p in (states.lift.weight, student.model.layers[0].mlp.up_proj.weight)]
    distiller.zero_grad()
    distiller.states = None
    expected = distiller(**batch)["loss"] + 3 * direct(states, student, teacher, pairs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(got, (states.lift.weight, student.model.layers[0].mlp.up_proj.weight), strict=True):
        assert torch.allclose(a, b.grad, rtol=1e-7, atol=1e-12)
    assert all(p.grad is None for p in teacher.parameters())


def test_equal_models_are_not_apart():
    model = models.tiny("llama")
    states = states_of([(0, 0), (2, 2)], model, model)
    assert direct(states, model, model, states.pairs).abs() < 1e-6


def test_another_width_is_lifted():
    teacher = models.tiny("llama")
    small = fxcompress.apply(teacher, [PruneEmbedding(ratio=0.25)])
    found = distilled(small, teacher, objective=DYNAMIC)
    assert found.losses[-1][1] < found.losses[0][1]
    assert not any("lift" in name for name in found.student.state_dict())


def test_resume_is_exact_with_the_map(tmp_path):
    teacher = models.tiny("llama")
    small = fxcompress.apply(teacher, [RemoveLayers(layers=[1])])
    options = {"objective": DYNAMIC, "training": quick(save_every=2)}
    whole = distilled(small, teacher, out=tmp_path / "whole", **options)

    def stop(line):
        if line.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distilled(small, teacher, out=tmp_path / "out", log=stop, **options)
    again = distilled(small, teacher, out=tmp_path / "out", **options)
    state = whole.student.program.state
    assert all(value.equal(state[name]) for name, value in again.student.program.state.items())


def test_layers_that_no_plan_explains_have_to_be_paired():
    config = models.config("llama")
    config.num_hidden_layers = 2
    student = type(models.tiny("llama"))(config)
    with pytest.raises(CompressError, match="has 2 layers and the teacher 3, and the student's plan removed 0"):
        distilled(student, models.tiny("llama"), objective=DYNAMIC)
    found = distilled(student, models.tiny("llama"), objective=Objective(states="dynamic", pairs=((1, 2),)))
    assert len(found.losses) == 4


def test_places_that_are_not_there_are_refused():
    with pytest.raises(CompressError, match="the pair 1:4 is out of range: the student has 3 layers and the teacher 3"):
        distilled(models.tiny("llama", 1), models.tiny("llama"), objective=Objective(states=1.0, pairs=((1, 4),)))


def test_pairs_without_a_weight_are_refused():
    with pytest.raises(CompressError, match="pairs are of intermediate states: give states a weight"):
        Objective(pairs=((1, 1),))


def test_states_of_an_offline_teacher_are_refused(tmp_path):
    with pytest.raises(CompressError, match="intermediate states are those of a teacher that runs"):
        distilled(
            models.tiny("llama", 1),
            models.tiny("llama"),
            objective=Objective(top_k=4, states=1.0),
            offline=tmp_path / "kept",
        )
