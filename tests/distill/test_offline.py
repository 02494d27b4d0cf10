"""What is kept of a teacher is what it said, is used in its place, and is taken for no other."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxcompress
from fxcompress import CompressError, Objective
from fxcompress.distillation import offline, taught
from fxcompress.distillation.losses import top_of
from fxcompress.distillation.offline import MANIFEST, Asked, Offline
from fxcompress.distillation.rows import rows_of
from fxcompress.distillation.teacher import Online
from tests import models
from tests.distill.quick import distilled, quick

CUT = [ids[:n].tolist() for ids, n in zip(models.ids(8, 12), [12, 7] * 4, strict=True)]
ROWS = rows_of([{"input_ids": ids, "labels": ids} for ids in CUT], None, 2)
TOP = Objective(top_k=8)


@pytest.fixture(scope="module")
def teacher():
    return models.tiny("llama")


@pytest.fixture
def asked(tmp_path, teacher) -> Asked:
    return Asked(tmp_path / "kept", taught.identity(teacher), ROWS, 1.0, 8)


@pytest.fixture
def written(asked, teacher) -> Asked:
    ids = models.ids(2, 7)
    offline.write(asked, Online(teacher, ids), 3, torch.device("cpu"), fxcompress.progress.silent)
    return asked


def learnt(tmp_path: Any, teacher: Any, **options: Any) -> Any:
    return distilled(models.tiny("llama", 1), teacher, offline=tmp_path / "kept", **{"objective": TOP} | options)


def test_each_row_has_what_the_teacher_says_where_a_token_is_predicted(written, teacher):
    kept = Offline(written)
    for place in (3, 0, 6):
        row = ROWS[place]
        with torch.no_grad():
            logits = teacher(row["input_ids"][None]).logits[0, :-1]
        ids, log_probs = kept.targets({}, torch.tensor([place]), None)
        expected = top_of(logits, 8)
        assert ids.equal(expected.ids)
        assert torch.allclose(log_probs, expected.log_probs, atol=1e-5)


def test_rows_of_a_batch_follow_one_another(written):
    kept = Offline(written)
    both = kept.targets({}, torch.tensor([5, 2]), None)
    apart = [kept.targets({}, torch.tensor([place]), None) for place in (5, 2)]
    assert all(a.equal(torch.cat(b)) for a, b in zip(both, zip(*apart, strict=True), strict=True))


def test_several_files_are_as_good_as_one(written, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "_SHARD", 20 * (8 * 8 + 4))
    several = Asked(tmp_path / "several", written.teacher, ROWS, 1.0, 8)
    offline.write(several, Online(teacher, models.ids(2, 7)), 3, torch.device("cpu"), fxcompress.progress.silent)
    assert len(list(several.folder.glob("*.safetensors"))) > 2
    for place in range(8):
        one, other = (Offline(a).targets({}, torch.tensor([place]), None) for a in (written, several))
        assert one[0].equal(other[0])
        assert torch.allclose(one[1], other[1], atol=1e-5)


def test_it_teaches_as_the_teacher_that_runs_beside(tmp_path, teacher):
    beside = distilled(models.tiny("llama", 1), teacher, objective=TOP)
    kept = learnt(tmp_path, teacher)
    assert [x for _, x in kept.losses] == pytest.approx([x for _, x in beside.losses], rel=1e-4)
    assert kept.estimate.memory["teacher"] == 0


def test_over_epochs_and_runs_the_teacher_runs_once(tmp_path, teacher, monkeypatch):
    learnt(tmp_path, teacher, training=quick(steps=None, epochs=2.0))
    monkeypatch.setattr(Online, "targets", lambda *_: pytest.fail("the teacher ran again"))
    learnt(tmp_path, teacher)


def test_fewer_tokens_than_are_kept_may_be_used(tmp_path, teacher):
    learnt(tmp_path, teacher)
    few = Objective(top_k=3)
    beside = distilled(models.tiny("llama", 1), teacher, objective=few)
    kept = learnt(tmp_path, teacher, objective=few)
    assert [x for _, x in kept.losses] == pytest.approx([x for _, x in beside.losses], rel=1e-4)


def test_a_temperature_is_that_of_what_was_kept(tmp_path, teacher):
    soft = Objective(top_k=8, temperature=2.0)
    beside = distilled(models.tiny("llama", 1), teacher, objective=soft)
    kept = learnt(tmp_path, teacher, objective=soft)
    assert [x for _, x in kept.losses] == pytest.approx([x for _, x in beside.losses], rel=1e-4)
    with pytest.raises(CompressError, match="with other temperature"):
        learnt(tmp_path, teacher)


def test_held_out_text_is_scored_without_the_teacher(tmp_path, teacher, held_out):
    found = learnt(tmp_path, teacher, held_out=held_out)
    assert found.before.kl is None
    assert found.after.loss > 0
    assert found.of_teacher is None


def test_a_run_that_was_stopped_goes_on_file_by_file(written, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "_SHARD", 20 * (8 * 8 + 4))
    several = Asked(tmp_path / "several", written.teacher, ROWS, 1.0, 8)
    arguments = (several, Online(teacher, models.ids(2, 7)), 3, torch.device("cpu"), fxcompress.progress.silent)
    real, done = offline._written, []

    def stop_at_third(*given: Any) -> str:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(given[0].name)
        return real(*given)

    with monkeypatch.context() as stopping:
        stopping.setattr(offline, "_written", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            offline.write(*arguments)
    assert not several.folder.exists()
    made = []
    monkeypatch.setattr(offline, "_written", lambda *given: made.append(given[0].name) or real(*given))
    offline.write(*arguments)
    assert not set(made) & set(done)
    assert Offline(several)


# What is refused


def test_another_teacher_or_other_rows_are_refused(tmp_path, teacher):
    learnt(tmp_path, teacher)
    with pytest.raises(CompressError, match="has what a teacher says with other weights"):
        learnt(tmp_path, models.tiny("llama", 2))
    with pytest.raises(CompressError, match="has what a teacher says with other text"):
        learnt(tmp_path, teacher, rows=models.ids(8, 12, seed=9))


def test_more_tokens_than_are_kept_are_refused(tmp_path, teacher):
    learnt(tmp_path, teacher)
    with pytest.raises(CompressError, match="has the 8 most likely tokens, 9 are asked for"):
        learnt(tmp_path, teacher, objective=Objective(top_k=9))


def test_more_tokens_than_there_are_are_refused(tmp_path, teacher):
    with pytest.raises(CompressError, match="top_k=97 is more than the 96 tokens of the teacher"):
        learnt(tmp_path, teacher, objective=Objective(top_k=97))
    assert list(tmp_path.iterdir()) == []


def test_how_many_tokens_has_to_be_said(tmp_path, teacher):
    with pytest.raises(CompressError, match="an offline teacher keeps its most likely tokens: say how many by top_k"):
        learnt(tmp_path, teacher, objective=Objective())


def test_ids_that_the_teacher_does_not_have_are_refused(written):
    (file,) = written.folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"ids": tensors["ids"] + 90}, file)
    with pytest.raises(CompressError, match="is damaged: it names tokens that the teacher does not have"):
        Offline(written).targets({}, torch.tensor([0]), None)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"k": 0}, {"k": "8"}, {"first_rows": {"../x.safetensors": 0}}, {"first_rows": {}}, {"more": 1}],
)
def test_a_manifest_that_is_none_is_refused(written, change):
    file = written.folder / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CompressError):
        Offline(written)


@pytest.mark.parametrize(
    "first_rows", [{"top-00001.safetensors": 1}, {"top-00001.safetensors": 0, "b.safetensors": 99}]
)
def test_files_that_do_not_follow_one_another_are_refused(written, first_rows):
    file = written.folder / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"first_rows": first_rows}))
    with pytest.raises(CompressError, match="do not follow one another"):
        Offline(written)


def test_a_file_of_other_shapes_is_refused(written):
    (file,) = written.folder.glob("*.safetensors")
    save_file({name: value[:-1].contiguous() for name, value in load_file(file).items()}, file)
    with pytest.raises(CompressError, match="is damaged: it has not 8 tokens of"):
        Offline(written)


def test_a_file_that_is_gone_is_refused(written):
    next(iter(written.folder.glob("*.safetensors"))).unlink()
    with pytest.raises(CompressError, match="damaged or cut short"):
        Offline(written)
