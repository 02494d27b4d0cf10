"""Each thing that goes wrong ends, says and leaves what tests/mishaps says of it, and breaks no law of place.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxcompress.journal import folder_of
from tests.mishaps import MISHAPS
from tests.mishaps.place import FFN, NOTHING, Mishap, Place, carry_out, works_again


@pytest.mark.parametrize(
    "mishap",
    [pytest.param(m, id=f"{m.kind}: {m.name}", marks=[pytest.mark.slow] * m.slow) for m in MISHAPS],
)
def test_what_goes_wrong_is_told_and_harms_nothing(mishap: Mishap, tmp_path: Path):
    assert carry_out(mishap, tmp_path).unlike(mishap) == []


def test_no_two_of_them_are_called_alike():
    assert len({(mishap.kind, mishap.name) for mishap in MISHAPS}) == len(MISHAPS)


@pytest.mark.slow
def test_a_correct_run_succeeds_after_any_kind_of_mishap(tmp_path: Path):
    firsts = {m.kind: m for m in reversed(MISHAPS) if m.left == NOTHING and not m.works}
    for kind, mishap in firsts.items():
        carry_out(mishap, tmp_path / kind)
        assert works_again(tmp_path / kind) == "", kind


@pytest.mark.slow
def test_a_job_that_a_batch_system_ends_goes_on_where_it_was(tmp_path: Path):
    place = Place.fresh(tmp_path)
    program = "from fxcompress.cli import main; main()"
    options = ["compress", str(place.model), "-o", str(place.out), "--pass", FFN, "--max-shard-size", "60KB"]
    process = subprocess.Popen([sys.executable, "-c", program, *options], stderr=subprocess.PIPE, text=True)
    while not (folder_of(place.out) / "journal.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert place.compress("--max-shard-size", "60KB").exit_code == 0
