"""Planted faults: each law can fail, and every fault is caught by at least one of them.

The table that this prints for the documents is made by ``tools/results.py`` from the same faults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import pytest

from fxcompress.verify import Law
from tests import models
from tests.faults import FAULTS, Fault, plant


@functools.cache
def verdicts(fault: Fault) -> list[Law]:
    return plant(fault, models.captured(fault.family))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_a_planted_fault_is_caught(fault):
    laws = verdicts(fault)
    assert any(not law.holds for law in laws), [str(law) for law in laws]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_without_the_fault_the_same_rewrite_passes(fault):
    sound = dataclasses.replace(fault, plant=contextlib.nullcontext)
    assert all(law.holds for law in verdicts(sound))


@pytest.mark.parametrize("law", ["shapes", "count", "prune equals mask", "permutation"])
def test_every_law_catches_a_fault(law):
    assert any(found.name == law and not found.holds for fault in FAULTS for found in verdicts(fault))
