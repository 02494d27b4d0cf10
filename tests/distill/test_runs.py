"""A run with an output: stopped anywhere it ends with the same weights; a failure leaves the last checkpoint whole."""

from __future__ import annotations

import errno
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

import fxcompress
from fxcompress import CompressError
from fxcompress.distillation.objective import Objective
from fxcompress.distillation.trainer import DistillationTrainer, Line
from fxcompress.export.save import Result
from fxcompress.passes import PruneFFN
from tests import models
from tests.distill.quick import distilled, quick

SIX = {"steps": 6, "save_every": 2}


@pytest.fixture(scope="module")
def teacher():
    return models.tiny("llama")


@pytest.fixture(scope="module")
def small(teacher):
    return fxcompress.apply(teacher, [PruneFFN(ratio=0.25)])


@pytest.fixture(scope="module")
def uninterrupted(small, teacher, tmp_path_factory):
    """What every run below has to end with."""
    found = distilled(small, teacher, training=quick(**SIX), out=tmp_path_factory.mktemp("whole") / "out")
    return found


def stop_at(step: int, error: BaseException) -> Any:
    def log(line: Line) -> None:
        if line.step == step:
            raise error

    return log


def interrupted(small: Any, teacher: Any, out: Path, step: int = 5, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        distilled(small, teacher, training=quick(**SIX, **options), out=out, log=stop_at(step, KeyboardInterrupt()))


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out.parent / ".out.fxcompress" / "training").iterdir())


def same(a: Any, b: Any) -> bool:
    ours, theirs = a.student.program.state, b.student.program.state
    return all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_output_is_a_result_and_nothing_stays_beside_it(small, teacher, tmp_path, held_out):
    found = distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out", held_out=held_out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    logits = found.student(input_ids=held_out).logits
    assert torch.allclose(loaded(held_out).logits, logits, atol=1e-4)
    report = fxcompress.load(tmp_path / "out").report
    assert report.notes["distillation"]["held_out"]["after"]["loss"] == found.after.loss
    assert report.reload_error < 1e-4


def test_nothing_in_it_is_pickled(small, teacher, tmp_path):
    distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".html", ".txt"}


def test_a_model_of_transformers_is_saved_as_a_result_and_given_back_as_itself(teacher, tmp_path, held_out):
    found = distilled(models.tiny("llama", 1), teacher, out=tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(found.student) is type(teacher)
    assert torch.allclose(loaded(held_out).logits, found.student(held_out).logits, atol=1e-5)


@pytest.mark.parametrize("step", [3, 4, 5])
def test_resume_is_exact(small, teacher, tmp_path, uninterrupted, step):
    interrupted(small, teacher, tmp_path / "out", step)
    found = distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert same(found, uninterrupted)
    assert found.losses == uninterrupted.losses
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_line_is_the_mean_since_the_line_before_also_over_an_interruption(small, teacher, tmp_path, uninterrupted):
    each = [loss for _, loss in uninterrupted.losses]
    interrupted(small, teacher, tmp_path / "out", step=3, log_every=3)
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]
    found = distilled(small, teacher, training=quick(**SIX, log_every=3), out=tmp_path / "out")
    assert found.losses == [(3, fmean(each[:3])), (6, fmean(each[3:]))]


def test_the_loss_of_a_step_is_that_of_all_its_batches(small, teacher):
    """``Trainer``'s own mean is the reference."""
    theirs = []
    real = Trainer.log

    def log(self, logs, *of):
        theirs.extend([logs["loss"]] if "loss" in logs else [])
        real(self, logs, *of)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DistillationTrainer, "log", log)
        distilled(small, teacher, training=quick(**SIX, accumulation=3, batch_size=2))
    ours = distilled(small, teacher, training=quick(**SIX, accumulation=3, batch_size=2)).losses
    assert [loss for _, loss in ours] == pytest.approx(theirs, rel=1e-6)
    assert len(theirs) == 6


def test_resume_would_not_be_exact_without_the_moments(small, teacher, tmp_path, uninterrupted, monkeypatch):
    """The planted fault."""
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda *_: None)
    interrupted(small, teacher, tmp_path / "out")
    assert not same(distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out"), uninterrupted)


def test_what_was_done_is_not_done_again(small, teacher, tmp_path, held_out):
    lines: list[Line] = []
    log = stop_at(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out", log=log, held_out=held_out)
    distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out", log=lines.append, held_out=held_out)
    assert [line.step for line in lines] == [5, 6]


def test_an_interrupted_run_leaves_its_last_checkpoint_alone_and_loadable(small, teacher, tmp_path, held_out):
    interrupted(small, teacher, tmp_path / "out")
    assert checkpoints(tmp_path / "out") == ["checkpoint-4"]
    place = tmp_path / ".out.fxcompress" / "training" / "checkpoint-4"
    assert AutoModelForCausalLM.from_pretrained(place)(held_out).logits.isfinite().all()
    assert not list(place.glob("training_args*"))


def test_the_user_is_told_what_is_kept(small, teacher, tmp_path):
    with pytest.raises(KeyboardInterrupt) as told:
        distilled(
            small, teacher, training=quick(**SIX), out=tmp_path / "out", log=stop_at(5, KeyboardInterrupt("stopped"))
        )
    assert "training to step 4; the same command goes on from there" in told.value.__notes__[0]


def test_a_run_that_stopped_before_its_first_checkpoint_leaves_nothing(small, teacher, tmp_path):
    interrupted(small, teacher, tmp_path / "out", step=1)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_while_it_saved_goes_on(small, teacher, tmp_path, uninterrupted):
    interrupted(small, teacher, tmp_path / "out")
    half = tmp_path / ".out.fxcompress" / "training" / "part" / "checkpoint-6"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert same(distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out"), uninterrupted)


def test_a_run_that_stopped_after_its_last_step_only_saves(small, teacher, tmp_path, uninterrupted, monkeypatch):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Result, "write", fill)
        with pytest.raises(OSError, match="No space left"):
            distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    found = distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert same(found, uninterrupted)
    assert found.losses == uninterrupted.losses


def test_a_disk_that_fills_up_while_saving_leaves_the_checkpoint_before(
    small, teacher, tmp_path, uninterrupted, monkeypatch
):
    real, saved = torch.save, []

    def fill(*arguments: object, **options: object) -> None:
        saved.append(1)
        if len(saved) > 3:  # optimiser, schedule and randomness of the first checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **options)

    with monkeypatch.context() as full:
        full.setattr(torch, "save", fill)
        with pytest.raises(OSError, match="No space left"):
            distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]
    assert same(distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out"), uninterrupted)


def test_another_request_does_not_go_on_with_it(small, teacher, tmp_path):
    interrupted(small, teacher, tmp_path / "out")
    with pytest.raises(CompressError, match="has an unfinished run of another request"):
        distilled(small, teacher, training=quick(**SIX, seed=1), out=tmp_path / "out")
    with pytest.raises(CompressError, match="has an unfinished run of another request"):
        distilled(small, models.tiny("llama", 3), training=quick(**SIX), out=tmp_path / "out")
    with pytest.raises(CompressError, match="has an unfinished run of another request"):
        distilled(small, teacher, models.ids(8, 12, seed=4), training=quick(**SIX), out=tmp_path / "out")
    assert checkpoints(tmp_path / "out") == ["checkpoint-4"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_this_run_has_not_written_is_refused_and_left(small, teacher, tmp_path, name):
    interrupted(small, teacher, tmp_path / "out")
    file = tmp_path / ".out.fxcompress" / "training" / "checkpoint-4" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CompressError, match=f"{name} is missing or not as it was written"):
        distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert file.exists()


def no_number_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss that is computed once a step."""
    real, seen = DistillationTrainer.compute_loss, []

    def compute_loss(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(1)
        return real(self, *arguments, **options) * (float("nan") if len(seen) >= step else 1.0)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", compute_loss)


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_good_weights_stay(
    small, teacher, tmp_path, monkeypatch, held_out
):
    said = r"the loss is nan at step 5: the last good weights are in .*checkpoint-4"
    with monkeypatch.context() as broken:
        no_number_at(5, broken)
        with pytest.raises(CompressError, match=said):
            distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    place = tmp_path / ".out.fxcompress" / "training" / "checkpoint-4"
    again = distilled(place, teacher, training=quick(**SIX, min_learning_rate=0.0))
    assert again.student(input_ids=held_out).logits.isfinite().all()


def test_it_stops_before_there_is_a_checkpoint_too(small, teacher, tmp_path, monkeypatch):
    no_number_at(2, monkeypatch)
    with pytest.raises(CompressError, match="the loss is nan at step 2: no checkpoint was there yet"):
        distilled(small, teacher, training=quick(**SIX), out=tmp_path / "out")


def test_and_without_an_output(small, teacher, monkeypatch):
    no_number_at(3, monkeypatch)
    with pytest.raises(CompressError, match="the loss is nan at step 3"):
        distilled(small, teacher, training=quick(**SIX))


def test_weights_that_overflow_are_never_saved(small, teacher, tmp_path):
    huge = quick(steps=6, save_every=1, learning_rate=1e38, clip=0.0, warmup=0)
    with pytest.raises(CompressError, match=r"holds values that are NaN or Inf after step|the loss is"):
        distilled(small, teacher, training=huge, out=tmp_path / "out")
    for place in (tmp_path / ".out.fxcompress" / "training").glob("checkpoint-*"):
        assert all(p.isfinite().all() for p in AutoModelForCausalLM.from_pretrained(place).parameters())


def test_an_output_that_holds_something_is_left_alone(small, teacher, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")
    with pytest.raises(CompressError, match="exists and is not an empty directory"):
        distilled(small, teacher, out=tmp_path / "out")


def test_an_objective_of_the_caller_is_in_the_report(small, teacher):
    found = distilled(small, teacher, objective=Objective(temperature=2.0))
    assert found.student.report.notes["distillation"]["objective"]["temperature"] == 2.0
