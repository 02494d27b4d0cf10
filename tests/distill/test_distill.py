"""Training brings a student nearer to its teacher, gives it back as it was given, and leaves both givens alone."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import fxcompress
from fxcompress import CompressedModel, CompressError, Training
from fxcompress.passes import PruneFFN, PruneSSMHeads, RemoveLayers
from tests import models
from tests.distill.quick import distilled, quick

MANY = models.ids(48, 12, seed=2)
original = torch.compile
LONG = quick(steps=30, batch_size=8, learning_rate=1e-3)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("name", ["llama", "mamba2", "nemotron_h"])
def test_a_student_comes_nearer_to_its_teacher(name, held_out):
    student, teacher = models.tiny(name, 1), models.tiny(name)
    found = distilled(student, teacher, training=quick(steps=15), held_out=held_out)
    assert found.after.kl < 0.9 * found.before.kl
    assert found.losses[-1][1] < found.losses[0][1]
    assert [step for step, _ in found.losses] == list(range(1, 16))


def test_both_givens_are_left_alone():
    student, teacher = models.tiny("llama", 1), models.tiny("llama").train()
    before = weights(student), weights(teacher)
    found = distilled(student, teacher)
    assert equal(weights(student), before[0])
    assert equal(weights(teacher), before[1])
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for m in (student, teacher) for p in m.parameters())
    assert not equal(weights(found.student), before[0])


def test_a_model_may_be_its_own_teacher(held_out):
    model = models.tiny("llama")
    found = distilled(model, model, held_out=held_out)
    assert found.before.kl == pytest.approx(0, abs=1e-6)
    assert found.before.agreement == 1.0
    assert found.losses[0][1] == pytest.approx(0, abs=1e-6)


def test_scores_are_those_of_the_models(held_out):
    student, teacher = models.tiny("llama", 1), models.tiny("llama")
    found = distilled(student, teacher, held_out=held_out)
    with torch.no_grad():
        q, p = (m(held_out).logits[:, :-1].double().log_softmax(-1) for m in (student, teacher))
    loss = -q.gather(-1, held_out[:, 1:, None]).mean()
    assert found.before.loss == pytest.approx(loss.item(), rel=1e-5)
    assert found.before.perplexity == pytest.approx(loss.exp().item(), rel=1e-4)
    assert found.before.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.before.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.of_teacher.loss == pytest.approx(-p.gather(-1, held_out[:, 1:, None]).mean().item(), rel=1e-5)
    assert found.before.tokens == 4 * 11


def test_batches_and_accumulation_of_one_step_are_the_same_step():
    """Also where rows have other lengths: each token weighs the same."""
    rows = [
        {"input_ids": i[:n], "attention_mask": torch.ones(n)}
        for i, n in zip(models.ids(8, 12), [12, 5] * 4, strict=True)
    ]
    given = [{"input_ids": r["input_ids"].tolist()} for r in rows]
    results = []
    for options in ({"batch_size": 4}, {"batch_size": 1, "accumulation": 4}):
        training = quick(steps=2, **options, precision="float32")
        results.append(
            weights(distilled(models.tiny("llama", 1), models.tiny("llama"), given, training=training).student)
        )
    assert all(torch.allclose(results[0][name], results[1][name], atol=2e-5) for name in results[0])


def test_the_same_call_gives_the_same_weights():
    a, b = (weights(distilled(models.tiny("llama", 1), models.tiny("llama")).student) for _ in range(2))
    assert equal(a, b)


def test_another_seed_takes_other_rows_first():
    a, b = (distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(seed=s)).losses for s in (0, 1))
    assert a != b


# Kinds of students


def test_a_model_of_transformers_stays_one_in_its_dtype():
    student = models.tiny("llama", 1).bfloat16()
    found = distilled(student, models.tiny("llama"))
    assert type(found.student) is LlamaForCausalLM
    assert {p.dtype for p in found.student.parameters()} == {torch.bfloat16}
    assert found.student.config.dtype == torch.bfloat16
    assert not found.student.training
    assert found.student.lm_head.weight is found.student.model.embed_tokens.weight


def test_steps_below_the_spacing_of_bfloat16_are_not_lost():
    """The weights are trained in float32: of many small steps something is left."""
    student = models.tiny("llama", 1).bfloat16()
    slow = quick(steps=40, learning_rate=2e-4, min_learning_rate=2e-4, weight_decay=0.0)
    found = distilled(student, models.tiny("llama"), training=slow)
    name = "model.layers.1.mlp.up_proj.weight"
    moved = (found.student.state_dict()[name] != student.state_dict()[name]).float().mean()
    assert moved > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "passes"),
    [("llama", [PruneFFN(ratio=0.25), RemoveLayers(layers=[1])]), ("mamba2", [PruneSSMHeads(ratio=0.25)])],
)
def test_a_compressed_model_stays_one_with_its_plan(name, passes, held_out, tmp_path):
    """The second has a config of our own."""
    teacher = models.tiny(name)
    small = fxcompress.apply(teacher, passes)
    before = weights(small)
    found = distilled(small, teacher, MANY, held_out=held_out, training=LONG)
    assert isinstance(found.student, CompressedModel)
    assert equal(weights(small), before)
    assert found.student.steps == small.steps
    assert found.after.kl < found.before.kl
    assert found.student.report.notes["distillation"]["held_out"]["after"]["kl"] == found.after.kl
    with torch.no_grad():
        logits = found.student(input_ids=held_out).logits[:, :-1]
        p = teacher(held_out).logits[:, :-1].log_softmax(-1)
    kl = (p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean()
    assert kl.item() == pytest.approx(found.after.kl, rel=1e-3), "the graph has the trained weights"
    found.student.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(again(held_out).logits[:, :-1], logits, atol=1e-4)


@pytest.mark.slow
def test_what_only_its_graph_says_is_trained_as_a_graph(monkeypatch, held_out):
    from fxcompress.distillation import student as opening
    from fxcompress.export.choose import Choice

    teacher = models.tiny("llama")
    small = fxcompress.apply(teacher, [PruneFFN(ratio=0.25)])
    monkeypatch.setattr(opening, "choose", lambda *_: Choice("graph", None, "no config has such sizes"))
    found = distilled(small, teacher, MANY, held_out=held_out, training=LONG)
    assert found.after.kl < found.before.kl
    assert not equal(weights(found.student), weights(small))
    assert (
        "no config says what the student is (no config has such sizes): its captured graph is trained" in found.notes[1]
    )
    assert "logits of all positions of the student are made at once" in found.notes[2]


@pytest.mark.slow
def test_directories_are_students_and_teachers(saved, tmp_path, held_out):
    fxcompress.compress(saved("llama"), tmp_path / "small", [PruneFFN(ratio=0.25)])
    found = distilled(tmp_path / "small", saved("llama"), MANY, held_out=held_out, training=LONG)
    assert isinstance(found.student, CompressedModel)
    assert found.after.kl < found.before.kl
    assert found.notes == []


def test_compiled_models_learn_the_same(held_out, monkeypatch):
    """Without code generation: every step runs both compiled bodies."""
    calls = []

    def compiled(body):
        made = original(body, backend="aot_eager")
        return lambda *of, **named: calls.append(body) or made(*of, **named)

    monkeypatch.setattr(torch, "compile", compiled)
    plain, other = (
        distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(compile=on), held_out=held_out)
        for on in (False, True)
    )
    assert len(set(map(id, calls))) == 2
    assert len(calls) >= 2 * len(other.losses)
    assert [loss for _, loss in other.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-5)
    assert other.after.kl == pytest.approx(plain.after.kl, rel=1e-4)
    assert other.after.kl < other.before.kl


def test_states_of_compiled_models_are_refused():
    with pytest.raises(CompressError, match="read by hooks, which compiled models leave out"):
        distilled(
            models.tiny("llama", 1),
            models.tiny("llama"),
            training=quick(compile=True),
            objective=fxcompress.Objective(states=1.0),
        )


def test_gradient_checkpointing_changes_memory_and_no_number():
    plain, checkpointed = (
        distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(gradient_checkpointing=on))
        for on in (False, True)
    )
    assert [x for _, x in checkpointed.losses] == pytest.approx([x for _, x in plain.losses], rel=1e-5)
    assert checkpointed.estimate.memory["activations"] < plain.estimate.memory["activations"]


def test_bfloat16_layers_leave_weights_in_float32():
    found = distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(precision="bfloat16"))
    exact = distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(precision="float32"))
    assert found.student.dtype == torch.float32
    assert found.losses[0][1] != exact.losses[0][1]
    assert found.losses[0][1] == pytest.approx(exact.losses[0][1], rel=1e-2)


def test_lines_say_where_training_is():
    lines = []
    distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(log_every=2), log=lines.append)
    assert [(line.step, line.steps) for line in lines] == [(2, 4), (4, 4)]
    assert lines[-1].seconds_left == 0
    assert lines[0].tokens_per_second > 0


def test_the_estimate_counts_what_is_there():
    student = models.tiny("llama", 1)
    estimate = distilled(student, models.tiny("llama")).estimate
    size = 4 * sum(p.numel() for p in student.parameters())
    assert {name: estimate.memory[name] for name in ("weights", "gradients", "optimiser", "teacher")} == {
        "weights": size,
        "gradients": size,
        "optimiser": 2 * size,
        "teacher": size,
    }
    assert (estimate.steps, estimate.tokens_per_step) == (4, 2 * 11)
    assert estimate.fits


def test_a_longer_batch_keeps_more_activations():
    short, long = (
        distilled(models.tiny("llama", 1), models.tiny("llama"), models.ids(8, n)).estimate for n in (12, 48)
    )
    assert long.memory["activations"] > 3 * short.memory["activations"]


@pytest.mark.slow
def test_trainer_is_imported_when_something_is_trained():
    code = "import fxcompress, sys; fxcompress.distill; print('transformers.trainer' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "False"


@pytest.mark.gpu
def test_on_a_gpu_layers_compute_in_bfloat16_and_the_result_is_on_the_cpu(held_out):
    student, teacher = models.tiny("llama", 1), models.tiny("llama").bfloat16()
    found = distilled(student, teacher, MANY, training=quick(steps=30, batch_size=8, device="cuda"), held_out=held_out)
    assert found.after.kl < found.before.kl
    assert {p.device.type for m in (student, teacher, found.student) for p in m.parameters()} == {"cpu"}
    assert found.student.dtype == torch.float32


# What cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0 is not a whole number from 1 on"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is not a positive number"),
        ({"learning_rate": 1e-6}, "min_learning_rate=1e-05 is not between 0 and the learning rate 1e-06"),
        ({"precision": "int8"}, "precision='int8' is neither float32 nor bfloat16"),
        ({"device": "tpu"}, "device='tpu' is neither cpu nor cuda"),
    ],
)
def test_training_that_cannot_be_is_refused(options, said):
    with pytest.raises(CompressError, match=said):
        Training(**options)


def test_an_option_that_transformers_does_not_know_is_refused():
    with pytest.raises(CompressError, match=r"transformers refuses the options of training: .*colour"):
        distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(more={"colour": "red"}))


def test_data_shorter_than_one_step_is_refused():
    with pytest.raises(CompressError, match="the data has 8 rows and a step takes 12: 4 in a batch, 3 batches"):
        distilled(models.tiny("llama", 1), models.tiny("llama"), training=quick(batch_size=4, accumulation=3))


def test_another_vocabulary_is_refused():
    other = models.config("llama")
    other.vocab_size = 90
    with pytest.raises(CompressError, match="the student has 96 token ids and the teacher 90"):
        distilled(models.tiny("llama", 1), LlamaForCausalLM(other))


def test_another_tokenizer_of_the_same_size_is_refused(saved, copied):
    other = copied("llama")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9"', '"swapped"').replace('"w8"', '"w9"').replace('"swapped"', '"w8"'))
    with pytest.raises(CompressError, match="differ in 2 tokens: 'w8' is 9 to the student and 8 to the teacher"):
        distilled(other, saved("llama"))


def test_a_tokenizer_that_cannot_be_compared_is_told():
    found = distilled(models.tiny("llama", 1), models.tiny("llama"))
    assert "no tokenizer lies beside the student: that ids mean the same to both could not be checked" in found.notes


def test_ids_that_the_models_do_not_have_are_refused():
    with pytest.raises(CompressError, match="has the token id 96, the model has 96 ids"):
        distilled(models.tiny("llama", 1), models.tiny("llama"), torch.full((8, 5), 96))


def test_a_teacher_that_is_not_there_is_refused(saved):
    with pytest.raises(CompressError, match="nowhere"):
        distilled(saved("llama"), "/nowhere/at/all")


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_what_is_no_model_is_refused(which):
    pair = {"student": models.tiny("llama"), "teacher": models.tiny("llama")} | {which: torch.nn.Linear(2, 2)}
    with pytest.raises(CompressError, match=f"the {which} is 'Linear': give a model of transformers"):
        distilled(**pair)


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        empty = LlamaForCausalLM(models.config("llama"))
    with pytest.raises(CompressError, match="the student is on meta and has no values to train"):
        distilled(empty, models.tiny("llama"))
    with pytest.raises(CompressError, match="the teacher is on meta and has no values to teach with"):
        distilled(models.tiny("llama"), copy.deepcopy(empty))
