"""Runs that are killed, three rounds of them; ``tools/kill.py`` has the long ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tools" / "kill.py"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "rounds"), [("compress", 3), ("distill", 2)])
def test_killed_runs_go_on_to_the_result_of_an_undisturbed_one(
    command: str, rounds: int, monkeypatch: pytest.MonkeyPatch
):
    spec = importlib.util.spec_from_file_location("kill", FILE)
    assert spec is not None
    assert spec.loader is not None
    kill = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill", kill)  # where its dataclasses look for their types
    spec.loader.exec_module(kill)
    tally = kill.rounds(rounds, seconds=300, command=command)
    assert tally.rounds == rounds
    assert tally.differences == []
    assert tally.leftovers == []
    assert tally.lost == 0
