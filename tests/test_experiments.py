"""The experiments: what they cut, train and write; and the verdicts on their pages, which spread decides."""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fxcompress
from fxcompress import CompressError, Objective
from fxcompress.passes import PruneFFN, PruneSSMHeads, RemoveLayers
from fxcompress.recipe import Recipe
from fxcompress.searching.budget import Budget
from fxcompress.searching.candidates import candidates
from fxcompress.searching.choices import open_space
from fxcompress.searching.depth import stack

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = {
    "text": "It was a dark and stormy night; the rain fell in torrents. Call me Ishmael. " * 60,
    "held_out_text": "The rain fell on Ishmael, and the night was dark. " * 40,
    "other_text": "A function of bounded variation is the difference of two monotone ones. " * 60,
    "other_held_out_text": "A monotone function is of bounded variation. " * 40,
}
KNOWN = {
    "width with SSM mixers": [PruneSSMHeads(size=8), PruneFFN(size=24)],
    "depth": [RemoveLayers(layers=(1, 4))],
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


def at_one_rate(lab: Any, *of: Any, **named: Any) -> Any:
    return lab.runs_at(1e-2, *of, **named)


def cloned(model: Any) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def run(name: str, arguments: Any, monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, list[str]]:
    """An experiment's table, by its first column."""
    module = importlib.import_module(name)
    for key, value in values.items():
        monkeypatch.setattr(module, key, value)
    module.main(arguments)
    page = arguments.page.read_text()
    assert page.count(f"## {module.TITLE}\n") == 1
    assert (arguments.page.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    return rows_of(page.split("\n## ")[-1])


def rows_of(page: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {line[0]: line for line in lines[1:]}


# What each experiment trains


def test_shapes_differ_in_shape_alone(found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    assert set(run("shapes", arguments, monkeypatch)) == set(KNOWN)
    assert all(training.teacher is not None for training in trainings)
    assert {(t.seed, t.part, t.text, t.objective) for t in trainings} == {(0, 1 / 40, "text", Objective())}


def test_scratch_has_no_teacher_and_its_share_of_the_tokens(
    found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch
):
    assert len(run("tokens", arguments, monkeypatch)) == 4
    assert [(t.part, t.teacher is None) for t in trainings] == [
        (1 / 40, False),
        (1 / 40, True),
        (1 / 10, True),
        (1.0, True),
    ]


def test_losses_differ_in_the_loss_alone(found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    assert set(run("losses", arguments, monkeypatch)) == {
        "forward KL",
        "cross-entropy",
        "forward KL + cross-entropy",
    }
    kl, ce, both = trainings
    assert (kl.objective, ce.teacher, both.objective) == (Objective(), None, Objective(ce=1.0))
    assert kl.teacher is not None
    assert both.teacher is not None
    assert {training.part for training in (kl, ce, both)} == {1 / 40}


def test_corrected_is_the_teacher_and_never_the_student(
    found: Any, arguments: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch
):
    """A first weight of 77 tells the one that was."""
    lab = importlib.import_module("lab")
    plain = lab.Lab.trained

    def marked(self, model, seed, *of, **named):
        model = cloned(plain(self, model, seed, *of, **named))
        if seed == lab.CHOOSING + 1:
            next(model.parameters()).data[0, 0] = 77.0
        return model

    monkeypatch.setattr(lab.Lab, "trained", marked)
    run("correction", arguments, monkeypatch)
    _, corrected, was, alone = trainings
    assert next(corrected.teacher.parameters())[0, 0] == 77.0
    assert was.teacher is not None
    assert next(was.teacher.parameters())[0, 0] != 77.0
    assert alone.teacher is None
    assert {training.text for training in trainings} == {"other_text"}


def test_every_experiment_trains_and_they_share_what_was_trained(
    found: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch
):
    lab = importlib.import_module("lab")
    monkeypatch.setattr(lab.Lab, "runs", at_one_rate)
    trained = []
    plain = lab.Lab.trained
    monkeypatch.setattr(lab.Lab, "trained", lambda *of, **named: trained.append(1) or plain(*of, **named))
    counts = {}
    for name in ("shapes", "losses", "tokens", "correction", "sparse"):
        fewer = {"METHODS": ("magnitude",)} if name == "sparse" else {"PARTS": {}} if name == "tokens" else {}
        before = len(trained)
        run(name, arguments, monkeypatch, **fewer)
        counts[name] = len(trained) - before
    # of losses and tokens one arm is a student of shapes
    assert counts == {"shapes": 2, "losses": 2, "tokens": 1, "correction": 4, "sparse": 2}


def test_lost_zeros_are_no_result(opened: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch):
    sparse = importlib.import_module("sparse")
    for name, value in {"BATCH": 2, "CALIBRATION": 4}.items():
        monkeypatch.setattr(sparse, name, value)
    p = fxcompress.passes.PruneWeights(method="magnitude", pattern="2:4")
    assert sparse.recovered(opened, p, 0, 1e-2)["zeros"] == 0.5

    def losing(self, model, *of, **named):
        model = cloned(model)
        for weight in model.parameters():
            weight.data[weight == 0] = 1e-3
        return model

    monkeypatch.setattr(type(opened), "trained", losing)
    with pytest.raises(SystemExit, match="training lost zeros"):
        sparse.recovered(opened, p, 0, 1e-2)


# Cells


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


# Learning rates


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


# Rows and bits


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


# The page


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5), "lower"),
        ((1.0, 1.1, 1.3), (1.3, 1.4, 1.5), "undecided"),
        ((1.0, 1.1, 1.35), (1.3, 1.4, 1.5), "undecided"),
        ((1.0, 1.1), (1.3, 1.4), "undecided"),  # one pair of equal arms in six is so
        ((1.0, 1.1), (1.3, 1.4, 1.5), "undecided"),
        ((1.0,), (1.3, 1.35, 1.4), "lower"),
        ((1.0,), (1.15, 1.2, 1.25), "undecided"),  # its own runs might lie as far apart as those of the other
        ((1.0,), (1.3, 1.4), "undecided"),
        ((1.0,), (1.3,), "undecided"),
    ],
)
def test_only_runs_that_do_not_overlap_decide(page: Any, one: Any, other: Any, verdict: str):
    table = rows_of(page.ranking([page.Arm("b", other), page.Arm("a", one)], ()))
    assert list(table) == ["a", "b"]
    assert table["a"][-1] == verdict
    assert table["b"][-1].strip("| ") == str(len(other))  # against nothing


def test_a_section_takes_the_place_of_its_older_one_and_of_no_other(page: Any, tmp_path: Path):
    file = tmp_path / "results.md"
    file.write_text("# Results\n\n## A\n\nold\n\n### part of A\n\nold\n\n## B\n\nkept\n")
    page.put(file, "A", "new")
    page.put(file, "C", "added")
    assert file.read_text() == "# Results\n\n## A\n\nnew\n\n## B\n\nkept\n\n## C\n\nadded\n"


def test_the_same_runs_give_the_same_plot(page: Any, tmp_path: Path):
    arms = [page.Arm("a", (1.0, 1.1), (2.0, 2.1)), page.Arm("b", (1.5,))]
    for name in ("one", "two"):
        page.plot(tmp_path / name / "plot.svg", arms, 0.9)
    assert (tmp_path / "one" / "plot.svg").read_bytes() == (tmp_path / "two" / "plot.svg").read_bytes()
