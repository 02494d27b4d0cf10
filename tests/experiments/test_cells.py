"""Cells are of one teacher, text and setting; learning rates are found apart from what is reported."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fxcompress
from fxcompress import CompressError
from fxcompress.searching.budget import Budget
from fxcompress.searching.candidates import candidates
from fxcompress.searching.choices import open_space
from fxcompress.searching.depth import stack


def test_a_way_is_searched_for_a_candidate_within_the_budget(shapes: Any, opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shapes, "TRIALS", 1)
    way = "width with SSM mixers"
    told = shapes.candidate(opened, way)
    assert told["tried"] == 1
    assert set(told["sizes"]) == {"width", "ffn", "ssm_heads", "ssm_channels"}
    student = shapes.student_of(opened, 0)
    part = outside_of_vocabulary(student) / outside_of_vocabulary(opened.teacher)
    assert 0.4 < part <= 0.5


def outside_of_vocabulary(model: Any) -> int:
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return model.num_parameters() - sum(table.numel() for table in tables)


@pytest.mark.parametrize("way", ["width, SSM mixers whole", "width with SSM mixers", "depth", "width and depth"])
def test_every_way_has_candidates_at_the_size_that_is_trained(shapes: Any, way: str):
    """Near the budget, so that ways are compared at the same size."""
    sizes = importlib.import_module("reference.sizes")
    with torch.device("meta"):
        model = sizes.build("hybrid", sizes.SIZES["small"])
    program = fxcompress.capture(model)
    asked = shapes.space(SimpleNamespace(teacher=model), way)
    space = open_space(program, asked, tuple(range(len(stack(program)))))
    whole = fxcompress.memory.Footprint.of(program).non_embedding
    budget = Budget.parse(f"non_embedding<={int(shapes.KEPT * whole)}")
    found = candidates(program, space, [budget])
    assert 0.4 < found[0].figures[budget] / whole <= 0.5
    assert len(found) >= 3


def test_a_stopped_experiment_goes_on_and_runs_nothing_twice(lab: Any, arguments: Any):
    opened, runs = lab.Lab.opened(SimpleNamespace(**vars(arguments) | {"seeds": 2})), []
    for _ in range(2):
        found = opened.runs_at(1e-3, "arm", lambda seed, rate: runs.append((seed, rate)) or {"after": float(seed)})
    assert runs == [(0, 1e-3), (1, 1e-3)]
    assert [cell["after"] for cell in found.cells] == [0.0, 1.0]


@pytest.mark.parametrize("other", ["text", "held_out_text", "model.safetensors", "training.json"])
def test_nothing_of_another_teacher_or_text_is_taken_for_it(lab: Any, arguments: Any, opened: Any, other: str):
    runs: list[int] = []
    opened.cell("arm", 0, lambda: runs.append(0) or {})
    file = getattr(arguments, other, arguments.teacher / other)
    file.write_bytes(file.read_bytes().replace(b"Ishmael", b"Ismael!") if "text" in other else changed(file))
    lab.Lab.opened(arguments).cell("arm", 0, lambda: runs.append(1) or {})
    assert runs == [0, 1]


def changed(file: Path) -> bytes:
    """The same but for the last byte of the weights, or for a learning rate."""
    old = file.read_bytes()
    return old.replace(b"0.01", b"0.02") if file.suffix == ".json" else old[:-1] + bytes([old[-1] ^ 1])


@pytest.mark.parametrize("setting", ["LENGTH", "BATCH", "CALIBRATION", "PART", "JUDGED"])
def test_nothing_of_other_settings_is_taken_for_it(lab: Any, opened: Any, setting: str, monkeypatch: Any):
    runs: list[int] = []
    opened.cell("arm", 0, lambda: runs.append(0) or {}, "recipe")
    monkeypatch.setattr(lab, setting, getattr(lab, setting) * 2)
    opened.cell("arm", 0, lambda: runs.append(1) or {}, "recipe")
    monkeypatch.undo()
    assert runs == [0, 1]


def test_nothing_of_another_recipe_is_taken_for_it(opened: Any):
    assert opened.cell("arm", 0, lambda: {"is": 1}, "one recipe") == {"is": 1}
    assert opened.cell("arm", 0, lambda: {"is": 2}, "another") == {"is": 2}


def test_a_run_that_failed_leaves_no_cell(opened: Any):
    def fails() -> dict[str, Any]:
        raise CompressError("no")

    with pytest.raises(CompressError):
        opened.cell("arm", 0, fails)
    assert opened.cell("arm", 0, lambda: {"is": 1}) == {"is": 1}


def test_a_teacher_whose_training_is_not_known_is_refused(lab: Any, arguments: Any):
    (arguments.teacher / "training.json").unlink()
    with pytest.raises(SystemExit, match="how many tokens the teacher was trained"):
        lab.Lab.opened(arguments)
    assert not arguments.output.exists()


def best_at(best: float, asked: list[tuple[int, float]]) -> Callable[[int, float], dict[str, Any]]:
    def trained(seed: int, rate: float) -> dict[str, Any]:
        asked.append((seed, rate))
        return {"after": float(seed), "choosing": abs(math.log(rate / best))}

    return trained


@pytest.mark.parametrize("factor", [1 / 16, 1 / 2, 1, 2, 8])
def test_the_best_learning_rate_is_found_with_a_seed_of_its_own(lab: Any, opened: Any, factor: float):
    asked: list[tuple[int, float]] = []
    found = opened.runs("arm", best_at(factor * lab.RATE, asked))
    assert found.rate == pytest.approx(factor * lab.RATE)
    assert {seed for seed, _ in asked[:-1]} == {lab.CHOOSING}
    assert asked[-1] == (0, found.rate)
    tried = {rate for _, rate in asked}
    assert {found.rate * 2, found.rate / 2} <= tried, "the rates beside it were not tried"


def test_a_learning_rate_at_which_training_fails_is_the_worst(lab: Any, opened: Any):
    def trained(seed: int, rate: float) -> dict[str, Any]:
        if rate > lab.RATE:
            raise CompressError("the loss is not finite")
        return {"after": 1.0, "choosing": abs(math.log(rate / (8 * lab.RATE)))}

    assert opened.runs("arm", trained).rate == lab.RATE


def test_what_is_reported_chose_no_learning_rate(lab: Any, opened: Any, monkeypatch: pytest.MonkeyPatch):
    judged: list[set[int]] = []
    windows = importlib.import_module("reference.texts").held_out
    opened.tokens["held_out_text"] = np.random.default_rng(0).integers(0, 300, 40 * 32)  # no window is like another
    row = {tuple(w.tolist()): i for i, w in enumerate(windows(opened.tokens["held_out_text"], 32, 10**6)[0])}

    def seen(*of: Any) -> Any:
        found = windows(*of)
        judged.append({row[tuple(w.tolist())] for batch in found for w in batch})
        return found

    monkeypatch.setattr(lab.texts, "held_out", seen)
    opened.judged(opened.teacher)
    after, choosing = judged
    assert after
    assert choosing
    assert not after & choosing


def test_rows_follow_from_the_seed_and_take_each_window_once(opened: Any):
    whole = len(opened.tokens["text"]) // 32
    rows = opened.rows(0, 2 * whole)
    assert rows.equal(opened.rows(0, 2 * whole))
    assert not rows.equal(opened.rows(1, 2 * whole))
    windows = torch.from_numpy(opened.tokens["text"][: whole * 32].astype(int)).view(whole, 32)
    for epoch in rows.split(whole):
        assert sorted(epoch.tolist()) == sorted(windows.tolist())


def test_bits_are_those_of_the_text(lab: Any, opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lab, "JUDGED", 1)
    tokens = torch.from_numpy(opened.tokens["held_out_text"].astype(int))
    nats, count = 0.0, 0
    for start in range(0, len(tokens) - 32, 32):
        row = tokens[start : start + 33]
        logits = opened.teacher(row[None, :-1]).logits[0].double()
        nats += F.cross_entropy(logits, row[1:], reduction="sum").item()
        count += len(opened.tokenizer.decode(row[1:].tolist(), skip_special_tokens=False).encode())
    assert opened.bits(opened.teacher) == pytest.approx(nats / 0.6931471805599453 / count, rel=1e-4)
