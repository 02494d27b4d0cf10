"""The experiments: what they cut, train and write; and the verdicts on their pages, which spread decides."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fxcompress.passes import PruneFFN, PruneSSMHeads, RemoveLayers
from fxcompress.recipe import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = {
    "text": "It was a dark and stormy night; the rain fell in torrents. Call me Ishmael. " * 60,
    "held_out_text": "The rain fell on Ishmael, and the night was dark. " * 30,
    "other_text": "A function of bounded variation is the difference of two monotone ones. " * 60,
    "other_held_out_text": "A monotone function is of bounded variation. " * 30,
}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, for rows of 32 tokens."""
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")
    module = importlib.import_module("lab")
    for name, value in {"LENGTH": 32, "BATCH": 2, "CALIBRATION": 4, "JUDGED": 1, "RATES": (1e-2,)}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def page(lab: Any) -> Any:
    return importlib.import_module("page")


@pytest.fixture
def arguments(lab: Any, tmp_path: Path) -> SimpleNamespace:
    """What the command line says, with a teacher of 50,000 random weights that was trained with 12 steps of tokens."""
    sizes, texts = (importlib.import_module(f"reference.{name}") for name in ("sizes", "texts"))
    size, teacher = replace(sizes.SIZES["tiny"], vocabulary=300), tmp_path / "teacher"
    model = sizes.build("hybrid", size)
    model.save_pretrained(teacher)
    texts.save_tokenizer(texts.train_tokenizer("".join(TEXTS.values()), 300), teacher, 32)
    (teacher / "training.json").write_text(json.dumps({"tokens": 40 * 3 * 64, "learning_rate": 1e-2}))
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    given = {name: tmp_path / name for name in TEXTS}
    return SimpleNamespace(
        teacher=teacher, seeds=1, output=tmp_path / "out", page=tmp_path / "results.md", compile=False, **given
    )


@pytest.fixture
def shapes(lab: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With two ways, what was found for them being known."""
    module = importlib.import_module("shapes")
    for name, value in {"TRIALS": 1, "BATCH": 2, "CALIBRATION": 4}.items():
        monkeypatch.setattr(module, name, value)
    ways = {"width with SSM heads": {"ffn": [24], "ssm_heads": [8], "width": [20]}, "depth": {"layers": [4]}}
    monkeypatch.setattr(module, "WAYS", ways)
    known = {"width with SSM heads": [PruneSSMHeads(size=8), PruneFFN(size=24)], "depth": [RemoveLayers(layers=(1, 4))]}
    arguments.output.mkdir()
    for way, passes in known.items():
        found = {"recipe": Recipe(tuple(passes)).to_yaml(), "sizes": {"known": 1}}
        (arguments.output / f"search, {way}, seed 0.json").write_text(json.dumps(found))
    return module


def run(name: str, arguments: Any, monkeypatch: pytest.MonkeyPatch, **values: Any) -> str:
    """An experiment's section of the page."""
    module = importlib.import_module(name)
    for key, value in values.items():
        monkeypatch.setattr(module, key, value)
    module.main(arguments)
    page = arguments.page.read_text()
    assert page.count(f"## {module.TITLE}\n") == 1
    assert (arguments.page.parent / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    return page


def rows_of(page: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {line[0]: line for line in lines[1:]}


def test_every_experiment_writes_its_arms_and_shares_what_was_trained(
    shapes: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch
):
    table = rows_of(run("shapes", arguments, monkeypatch))
    assert set(table) == {"width with SSM heads", "depth"}
    whole = shapes.Lab.opened(arguments).teacher.num_parameters()
    assert all(int(row[2].replace(",", "")) < whole for row in table.values())
    (shared,) = arguments.output.glob("width with SSM heads, rate*")
    trained = shared.stat().st_mtime_ns

    for name, arms in {"tokens": 3, "losses": 3, "correction": 3, "sparse": 2}.items():
        fewer = {"sparse": {"METHODS": ("magnitude",)}, "tokens": {"PARTS": {"1/40": 1 / 40, "all": 0.1}}}
        section = run(name, arguments, monkeypatch, **fewer.get(name, {})).split("\n## ")[-1]
        assert len(rows_of(section)) == arms
    assert shared.stat().st_mtime_ns == trained, "a student was trained twice"


def test_a_way_is_searched_for_a_candidate_within_the_budget(shapes: Any, arguments: Any):
    lab = shapes.Lab.opened(arguments)
    found = shapes.searched(lab, "width with SSM heads")
    assert found["sizes"] == {"ssm_heads": 8, "ffn": 24, "width": 20}
    (arguments.output / "search, width with SSM heads, seed 0.json").write_text(json.dumps(found))
    student = shapes.student_of(lab, "width with SSM heads", 0)
    assert 0.45 < student.num_parameters() / lab.teacher.num_parameters() <= 0.5


def test_a_stopped_experiment_goes_on_and_trains_nothing_twice(lab: Any, arguments: Any):
    opened, runs = lab.Lab.opened(SimpleNamespace(**vars(arguments) | {"seeds": 2})), []
    for _ in range(2):
        cells = opened.runs("arm", 1e-3, lambda seed: runs.append(seed) or {"after": float(seed)})
    assert runs == [0, 1]
    assert [cell["after"] for cell in cells] == [0.0, 1.0]


def test_results_of_another_teacher_are_refused(lab: Any, arguments: Any):
    lab.Lab.opened(arguments)
    weights = arguments.teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(SystemExit, match="has results of another teacher"):
        lab.Lab.opened(arguments)


def test_rows_follow_from_the_seed_and_take_each_window_once(lab: Any, arguments: Any):
    opened = lab.Lab.opened(arguments)
    whole = len(opened.tokens["text"]) // 32
    rows = opened.rows(0, 2 * whole)
    assert rows.equal(opened.rows(0, 2 * whole))
    assert not rows.equal(opened.rows(1, 2 * whole))
    windows = torch.from_numpy(opened.tokens["text"][: whole * 32].astype(int)).view(whole, 32)
    for epoch in rows.split(whole):
        assert sorted(epoch.tolist()) == sorted(windows.tolist())


def test_bits_are_those_of_the_text(lab: Any, arguments: Any):
    opened = lab.Lab.opened(arguments)
    tokens = torch.from_numpy(opened.tokens["held_out_text"].astype(int))
    nats, count = 0.0, 0
    for start in range(0, len(tokens) - 32, 32):
        row = tokens[start : start + 33]
        logits = opened.teacher(row[None, :-1]).logits[0].double()
        nats += F.cross_entropy(logits, row[1:], reduction="sum").item()
        count += len(opened.tokenizer.decode(row[1:].tolist(), skip_special_tokens=False).encode())
    assert opened.bits(opened.teacher) == pytest.approx(nats / 0.6931471805599453 / count, rel=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.3, 1.4), "lower"),
        ((1.0, 1.1, 1.3), (1.3, 1.4), "undecided"),
        ((1.0, 1.1, 1.35), (1.3, 1.4), "undecided"),
        ((1.0,), (1.3, 1.4), "lower"),
        ((1.0,), (1.05, 1.15), "undecided"),  # its own runs might lie as far apart as those of the other
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
