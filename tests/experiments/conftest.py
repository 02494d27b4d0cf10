"""The scripts of examples/experiments with a teacher that is made in a second, and with rows of 32 tokens."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fxcompress import Objective
from fxcompress.recipe import Recipe
from tests.experiments.bench import KNOWN, at_one_rate, cloned

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = {
    "text": "It was a dark and stormy night; the rain fell in torrents. Call me Ishmael. " * 60,
    "held_out_text": "The rain fell on Ishmael, and the night was dark. " * 40,
    "other_text": "A function of bounded variation is the difference of two monotone ones. " * 60,
    "other_held_out_text": "A monotone function is of bounded variation. " * 40,
}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, for rows of 32 tokens."""
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    module = importlib.import_module("lab")
    for name, value in {"LENGTH": 32, "BATCH": 2, "CALIBRATION": 4, "JUDGED": 2}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def page(lab: Any) -> Any:
    return importlib.import_module("page")


@pytest.fixture
def arguments(lab: Any, tmp_path: Path) -> SimpleNamespace:
    """What the command line says, with a teacher of random weights that was trained with 120 steps of tokens."""
    sizes, texts = (importlib.import_module(f"reference.{name}") for name in ("sizes", "texts"))
    size, teacher = replace(sizes.SIZES["tiny"], vocabulary=300), tmp_path / "teacher"
    sizes.build("hybrid", size).save_pretrained(teacher)
    texts.save_tokenizer(texts.train_tokenizer("".join(TEXTS.values()), 300), teacher, 32)
    (teacher / "training.json").write_text(json.dumps({"tokens": 120 * 64, "learning_rate": 1e-2}))
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    given = {name: tmp_path / name for name in TEXTS}
    return SimpleNamespace(
        teacher=teacher, seeds=1, output=tmp_path / "out", page=tmp_path / "results.md", compile=False, **given
    )


@pytest.fixture
def opened(lab: Any, arguments: Any) -> Any:
    return lab.Lab.opened(arguments)


@pytest.fixture
def shapes(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("shapes")
    for name, value in {"BATCH": 2, "CALIBRATION": 4}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def found(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with two ways, what is found for them being known."""
    told = {
        way: {"recipe": Recipe(tuple(passes)).to_yaml(), "sizes": {"known": 1}, "tried": 1}
        for way, passes in KNOWN.items()
    }
    monkeypatch.setattr(shapes, "WAYS", dict.fromkeys(KNOWN, ()))
    monkeypatch.setattr(shapes, "candidate", lambda lab, way: told[way])
    return shapes


@pytest.fixture
def trainings(lab: Any, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What training was asked for, instead of training: its arguments. Nothing is cut, no learning rate is chosen."""
    asked: list[SimpleNamespace] = []

    def trained(self, model, seed, rate, part=lab.PART, teacher=None, objective=Objective(), text="text"):  # noqa: B008
        asked.append(SimpleNamespace(seed=seed, rate=rate, part=part, teacher=teacher, objective=objective, text=text))
        return model

    monkeypatch.setattr(lab.Lab, "trained", trained)
    monkeypatch.setattr(lab.Lab, "compressed", lambda self, passes, seed: cloned(self.teacher))
    monkeypatch.setattr(lab.Lab, "runs", at_one_rate)
    return asked
