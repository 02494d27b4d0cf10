"""A run that was stopped goes on where it was; a journal counts for its own request, and for one run at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fxcompress
from fxcompress import CompressError, ProofError, pipeline, verify
from fxcompress.export import save
from fxcompress.journal import folder_of, journaled, key_of
from fxcompress.passes import PruneAttentionHeads, PruneFFN, RemoveLayers
from tests import models

PASSES = [PruneFFN(ratio=0.25), PruneAttentionHeads(ratio=0.5), RemoveLayers(layers=(0,))]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    models.tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The files of a run that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    fxcompress.compress(model, out, PASSES, max_shard_size="50KB")
    return tree(out)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def stopped(error, monkeypatch, model, out, at):
    """A run that stops when it comes to the ``at``-th shard or, below zero, to the proof of pass -1 - ``at``."""
    shards, proofs, real = [], [], (save.write_shard, verify.check)

    def write(*arguments):
        shards.append(1)
        if len(shards) > at >= 0:
            raise error
        return real[0](*arguments)

    def check(before, *arguments):
        proofs.append(not before.is_meta)
        if at < 0 and sum(proofs) == -at:
            raise error
        return real[1](before, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_shard", write)
        patch.setattr(pipeline.verify, "check", check)
        with pytest.raises(type(error)):
            fxcompress.compress(model, out, PASSES, max_shard_size="50KB")


FULL, CTRL_C = OSError(28, "No space left on device"), KeyboardInterrupt()


@pytest.mark.parametrize(("error", "at"), [(CTRL_C, -2), (FULL, 0), (CTRL_C, 2)], ids=["proof", "shard 0", "shard 2"])
def test_a_stopped_run_ends_as_one_that_was_not(model, out, tmp_path, monkeypatch, whole, error, at):
    stopped(error, monkeypatch, model, out, at)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".out.fxcompress"]
    fxcompress.compress(model, out, PASSES, max_shard_size="50KB")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert tree(out) == whole


def test_no_finished_pass_is_decided_or_proven_again(model, out, monkeypatch):
    stopped(KeyboardInterrupt(), monkeypatch, model, out, at=1)
    real = pipeline.Pipeline._decided
    monkeypatch.setattr(
        pipeline.Pipeline,
        "_decided",
        lambda self, what, p, program, batches: (
            real(self, what, p, program, batches) if program.is_meta else pytest.fail(f"{p.name} ran again")
        ),
    )
    written = []
    monkeypatch.setattr(
        save, "write_shard", lambda f, s, v, real=save.write_shard: written.append(s.file) or real(f, s, v)
    )
    fxcompress.compress(model, out, PASSES, max_shard_size="50KB")
    assert written
    assert not any("00001" in name for name in written)


def test_a_shard_that_changed_meanwhile_is_written_again(model, out, monkeypatch, whole):
    stopped(KeyboardInterrupt(), monkeypatch, model, out, at=2)
    shard = sorted((folder_of(out) / "result").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    fxcompress.compress(model, out, PASSES, max_shard_size="50KB")
    assert tree(out) == whole


def test_another_request_does_not_take_over_what_is_not_its_own(model, out, monkeypatch):
    stopped(KeyboardInterrupt(), monkeypatch, model, out, at=1)
    before = tree(folder_of(out))
    with pytest.raises(CompressError, match="an unfinished run of another request"):
        fxcompress.compress(model, out, [PruneFFN(ratio=0.5)], max_shard_size="50KB")
    assert tree(folder_of(out)) == before


def test_a_damaged_journal_begins_anew(model, out, tmp_path, monkeypatch):
    stopped(KeyboardInterrupt(), monkeypatch, model, out, at=1)
    (folder_of(out) / "journal.json").write_text('{"key": ')
    fxcompress.compress(model, out, PASSES, max_shard_size="50KB")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_do_not_write_one_output(model, out):
    with journaled(out, key_of({})), pytest.raises(CompressError, match="another run is writing"):
        fxcompress.compress(model, out, PASSES)


def test_a_proof_that_fails_leaves_nothing(model, out, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "prune_equals_mask", lambda *_: verify.Law("prune equals mask", 0.5, 1e-3))
    with pytest.raises(ProofError):
        fxcompress.compress(model, out, PASSES)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_before_any_stage_leaves_nothing(out, tmp_path):
    with pytest.raises(KeyboardInterrupt), journaled(out, "key"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_what_is_kept(out):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught, journaled(out, "key") as (_, journal):  # noqa: PT012
        journal.stage("first", lambda: 1)
        journal.stage("second", stop)
    assert "finished and kept in" in caught.value.__notes__[0]
    assert json.loads((folder_of(out) / "journal.json").read_text())["stages"] == {"first": 1}


def test_the_key_is_that_of_the_request(model):
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
