"""Statistics in a file: found again as they were, refused where they are of something else."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fxcompress
from fxcompress import CompressError, capture, gather
from fxcompress.batches import batches_of
from fxcompress.kept_statistics import KeptStatistics, fingerprint
from fxcompress.passes import PruneExperts, PruneFFN, RemoveLayers
from fxcompress.statistics import Statistics
from tests import models

IDS = models.ids(3, 11)
PASSES = [PruneFFN(ratio=0.5, score="activation"), RemoveLayers(count=1, score="kl")]


@pytest.fixture
def kept(tmp_path):
    fxcompress.apply(models.tiny("llama"), PASSES, calibration=IDS, statistics=tmp_path / "found")
    return tmp_path / "found"


def steps(small):
    return [step.to_json() for step in small.steps]


def test_a_second_run_finds_all_in_the_file_and_decides_alike(kept, monkeypatch):
    first = fxcompress.apply(models.tiny("llama"), PASSES, calibration=IDS)
    monkeypatch.setattr(gather, "_SWEEPS", {})  # nothing could be gathered now
    for calibration in (IDS, None):
        again = fxcompress.apply(models.tiny("llama"), PASSES, calibration=calibration, statistics=kept)
        assert steps(again) == steps(first)


def test_what_is_not_there_yet_is_gathered_and_added(kept):
    before = len(load_file(kept))
    more = [*PASSES, PruneFFN(size=30, score="fluctuation")]
    fxcompress.apply(models.tiny("llama"), more, calibration=IDS, statistics=kept)
    assert len(load_file(kept)) > before
    with pytest.raises(CompressError, match="pass calibration="):
        fxcompress.apply(models.tiny("llama"), [PruneFFN(size=30, score="taylor")], statistics=kept)


def test_statistics_of_every_kind_come_back_as_they_were(tmp_path):
    program = capture(models.tiny("mixtral"))
    passes = [PruneExperts(ratio=0.34, score="routing"), RemoveLayers(count=1), RemoveLayers(count=1, score="loss")]
    watches = [watch for p in passes for watch in p.watches(program)]
    found = gather.gather(program, watches, batches_of(IDS))
    file = KeptStatistics.of(tmp_path / "found", program, batches_of(IDS))
    file.write(found)
    again = file.read(program)
    assert again.keys() == found.keys()
    assert all(torch.equal(again[w][name], value) for w in found for name, value in found[w].items())


@pytest.mark.parametrize(
    ("make", "calibration", "said"),
    [
        (lambda: models.tiny("llama", seed=1), IDS, "statistics of another model"),
        (lambda: models.tiny("mamba2"), IDS, "statistics of another model"),
        (lambda: models.tiny("llama"), models.ids(3, 11, seed=1), "statistics of other calibration data"),
        (lambda: models.tiny("llama"), models.ids(4, 11), "statistics of other calibration data"),
    ],
)
def test_statistics_of_something_else_are_refused_and_left_alone(kept, make, calibration, said):
    before = kept.read_bytes()
    with pytest.raises(CompressError, match=said):
        fxcompress.apply(make(), PASSES[:1], calibration=calibration, statistics=kept)
    assert kept.read_bytes() == before


def test_one_changed_weight_changes_the_fingerprint():
    program = capture(models.tiny("llama"))
    before = fingerprint(program)
    assert fingerprint(capture(models.tiny("llama"))) == before
    with torch.no_grad():
        next(iter(program.parameters()))[1].view(-1)[0].add_(1e-3)
    assert fingerprint(program) != before


def rewritten(kept, change):
    """The file with another note or other tensors."""
    with safe_open(kept, "pt") as stream:
        note = json.loads(stream.metadata()["fxcompress"])
    tensors = load_file(kept)
    change(note, tensors)
    save_file(tensors, kept, metadata={"fxcompress": json.dumps(note)})


FAULTS = {
    "a version of later": lambda note, tensors: note.update(format=2),
    "a kind that is unknown": lambda note, tensors: note["watched"][0].update(kind="median"),
    "a node that is not there": lambda note, tensors: note["watched"][-1].update(kind="mean", nodes=["nowhere"], dim=0),
    "sums that are gone": lambda note, tensors: tensors.pop("0.sum"),
    "sums that are shorter": lambda note, tensors: tensors.update({"1.sum": torch.zeros(3).double()}),
    "sums that are NaN": lambda note, tensors: tensors["1.sum"].fill_(torch.nan),
    "sums in another dtype": lambda note, tensors: tensors.update({"1.sum": tensors["1.sum"].float()}),
    "a field too many": lambda note, tensors: note.update(code="import os"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused(kept, fault):
    rewritten(kept, FAULTS[fault])
    with pytest.raises(CompressError, match="found"):
        fxcompress.apply(models.tiny("llama"), PASSES, calibration=IDS, statistics=kept)


@settings(max_examples=60)
@given(st.data())
def test_no_bytes_reach_the_user_as_another_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzzed")
    program = _program()
    file = KeptStatistics.of(folder / "found", program, batches_of(IDS))
    file.write(_statistics())
    content = bytearray(file.file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    file.file.write_bytes(content)
    try:
        found = file.read(program)
    except CompressError:
        return
    assert isinstance(found, Statistics)


@pytest.fixture(scope="module", autouse=True)
def _prepared():
    _program()


_CACHE: dict = {}


def _program():
    if not _CACHE:
        program = capture(models.tiny("llama"))
        watches = [watch for p in PASSES for watch in p.watches(program)]
        _CACHE["program"], _CACHE["found"] = program, gather.gather(program, watches, batches_of(IDS))
    return _CACHE["program"]


def _statistics():
    return _CACHE["found"]
