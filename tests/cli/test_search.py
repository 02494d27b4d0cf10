"""``search`` writes recipes that ``compress`` takes, a table and a plot; stopped at any moment, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxcompress
from fxcompress import CompressError
from fxcompress.calibration import read_calibration
from fxcompress.journal import folder_of
from fxcompress.recipe import Calibration, Recipe
from fxcompress.searching import layered, trial
from fxcompress.shifts import Shifts
from tests import models
from tests.search.tiny import BATCHES

SMALL = ("--budget", "parameters<=35K", "--axis", "ffn=40:80:8", "--axis", "width", "--trials", 3, "--best", 2)
FILES = {"recipe-1.yaml", "recipe-2.yaml", "search.json", "search.html", "pareto.png"}


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(f"w{3 + i * i % 90}" for i in range(400)))
    return file


@pytest.fixture(scope="session")
def command(saved, text) -> Callable[[Path], list]:
    def arguments(out: Path, *others: object) -> list:
        calibration = ("--calibration", text, "--samples", 8, "--length", 24)
        return ["search", saved("llama"), "-o", out, *calibration, *(others or SMALL)]

    return arguments


@pytest.fixture(scope="session")
def whole(run, command, tmp_path_factory) -> Path:
    """What a search that was not stopped writes, and prints."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = run(*command(out))
    assert result.exit_code == 0, result.output
    (out.parent / "stdout").write_text(result.stdout)
    return out


def test_recipes_table_and_plot_are_written_and_nothing_else(whole):
    assert {file.name for file in whole.iterdir()} == FILES
    assert {file.name for file in whole.parent.iterdir()} == {"out", "stdout"}
    assert (whole / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(whole):
    page = (whole / "search.html").read_text()
    assert "data:image/png;base64," in page
    assert "parameters&lt;=35K" in page
    assert 'src="http' not in page
    assert "<script" not in page


def test_it_ends_with_a_table(whole):
    printed = (whole.parent / "stdout").read_text()
    assert "3 of" in printed
    assert "recipe-1" in printed
    assert "as it is" in printed


def test_a_recipe_is_carried_out_by_compress_with_the_calibration_that_it_names(run, saved, whole, tmp_path):
    said = json.loads((whole / "search.json").read_text())["best"][0]["trial"]
    result = run("compress", saved("llama"), "--recipe", whole / "recipe-1.yaml", "-o", tmp_path / "small")
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == said["parameters"]
    assert Recipe.load(whole / "recipe-1.yaml").calibration.samples == 8


def test_the_calibration_is_named_from_where_the_recipe_lies(whole, text):
    calibration = Recipe.from_yaml((whole / "recipe-1.yaml").read_text()).calibration
    assert isinstance(calibration, Calibration)
    assert not Path(calibration.file).is_absolute()
    assert (whole / calibration.file).resolve() == text.resolve()


def test_values_in_memory_give_what_values_in_files_give(run, command, whole, tmp_path):
    result = run(*command(tmp_path / "out", *SMALL, "--device", "cpu"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "search.json").read_text() == (whole / "search.json").read_text()


@pytest.mark.parametrize(
    ("others", "why"),
    [
        (("--budget", "parameters<=1K", "--axis", "ffn"), "the closest, ffn="),
        (("--budget", "parameters<=4", "--budget", "parameters>=5"), "contradicts itself"),
        (("--budget", "params<=4"), "there is no budget in 'params'"),
        (("--budget", "parameters<=nan"), "is no budget"),
        (("--budget", "parameters<=40K", "--axis", "depth"), "there is no axis 'depth'"),
        (("--budget", "parameters<=40K", "--axis", "ffn=81"), "ffn: 81 is not between 1 and the 80 of the model"),
        (("--budget", "parameters<=40K", "--tensor-parallel", 4), "cannot be split"),
        (("--budget", "parameters<=40K", "--samples", 9999), "9999 are asked for"),
        (("--budget", "parameters<=40K", "--best", 99), "best=99 of trials=64"),
        (("--budget", "parameters<=40K", "--metric", "kl"), "metric is an option of a search by puzzle, not of one by"),
        (
            ("--budget", "parameters<=40K", "--by", "puzzle", "--layer-order", "kl"),
            "layer_order is an option of a search by sizes",
        ),
        (("--budget", "parameters<=40K", "--by", "minipuzzle", "--axis", "layers=1"), "there is no axis 'layers'"),
        (("--budget", "parameters<=40K", "--by", "minipuzzle", "--apart", 2), "apart is an option of a search by puzz"),
        (("--budget", "latency<=1s at prompt=4, new=2", "--by", "puzzle"), "is measured: a choice by layers"),
        (("--budget", "parameters<=1K", "--by", "puzzle", "--axis", "ffn=40"), "no choice of layers keeps the budget"),
    ],
)
def test_what_cannot_be_found_is_refused_and_nothing_is_left(run, command, tmp_path, others, why):
    result = run(*command(tmp_path / "out", *others))
    assert result.exit_code == 2, result.output
    assert why in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_taken_or_in_the_model_is_refused(run, command, saved, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for out in (tmp_path, saved("llama") / "out"):
        result = run(*command(out))
        assert result.exit_code == 2
        assert "choose another output" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(CompressError, match="lies in the directory of the model"):
        search(saved("llama"), saved("llama") / "out")


# By layers

BY_LAYERS = {
    "minipuzzle": ("--axis", "attention_layers=1:2:1", "--axis", "ffn=40,80", "--trials", 3, "--best", 1),
    "puzzle": ("--axis", "ffn=40", "--trials", 2, "--best", 1),
}


@pytest.mark.parametrize("by", BY_LAYERS)
def test_a_search_by_layers_writes_the_same_files_and_its_recipe_gives_what_it_says(run, command, saved, tmp_path, by):
    out = tmp_path / "out"
    result = run(*command(out, "--budget", "parameters<=38K", "--by", by, *BY_LAYERS[by]))
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == FILES - {"recipe-2.yaml"}
    assert all(said in result.stdout for said in ("as it is", "recipe-1", "agreement", "loss"))
    content = json.loads((out / "search.json").read_text())
    assert content["ranked_by"] == {"minipuzzle": "mean", "puzzle": "loss"}[by]
    recipe = Recipe.load(out / "recipe-1.yaml")
    small = fxcompress.apply(
        saved("llama"), recipe.passes(), calibration=read_calibration(recipe.calibration, saved("llama"))
    )
    assert small.report.to_json()["passes"][-1]["after"]["parameters"] == content["best"][0]["trial"]["parameters"]


# Stopped and gone on


def search(model: Path, out: Path, **others: object) -> object:
    arguments = {"space": {"ffn": (40, 80, 8), "width": [36]}, "calibration": BATCHES, "trials": 3, "best": 1} | others
    return fxcompress.search(model, "parameters<=35K", out=out, **arguments)


def test_what_was_tried_is_not_tried_again(saved, tmp_path, monkeypatch):
    model, tried, real = saved("llama"), [], trial.Bench.try_out

    def try_out(self, candidate, advance):
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(str(candidate))
        return real(self, candidate, advance)

    monkeypatch.setattr(trial.Bench, "try_out", try_out)
    with pytest.raises(KeyboardInterrupt) as stopped:
        search(model, tmp_path / "out")
    assert "the same command goes on from there" in stopped.value.__notes__[0]
    first, tried[:] = list(tried), []
    search(model, tmp_path / "out")
    assert len(first) == 2
    assert len(tried) == 1
    assert tried[0] not in first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_journal_of_another_request_is_not_taken(saved, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trial.Bench, "prove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(saved("llama"), tmp_path / "out")
    with pytest.raises(CompressError, match="unfinished run of another request"):
        search(saved("llama"), tmp_path / "out", calibration=BATCHES[:1])


ASKED = {
    "minipuzzle": {"space": {"attention_layers": [1, 2], "ffn": [40, 80]}, "trials": 3, "best": 1},
    "puzzle": {"space": {"ffn": [40]}, "trials": 2, "best": 1},
}


@pytest.mark.parametrize("by", ASKED)
def test_a_search_by_layers_goes_on_and_finds_the_same(tmp_path, monkeypatch, by):
    """Stopped while it scores its second batch, and again in its second trial."""
    model = models.captured("llama", torch.float32)
    method, asked = getattr(fxcompress, by), {"calibration": BATCHES, **ASKED[by]}
    batches, trials = [], []
    real_sweep, real_try = Shifts.sweep, layered.Bench.try_out

    def sweep(self, *given):
        batches.append(given)
        return _stop() if len(batches) == 2 else real_sweep(self, *given)

    def try_out(self, candidate, advance):
        trials.append(str(candidate))
        return _stop() if len(trials) == 2 else real_try(self, candidate, advance)

    monkeypatch.setattr(Shifts, "sweep", sweep)
    monkeypatch.setattr(layered.Bench, "try_out", try_out)
    for stage in ("alone 0", "trial "):
        with pytest.raises(KeyboardInterrupt) as stopped:
            method(model, "parameters<=50K", out=tmp_path / "out", **asked)
        assert stage in stopped.value.__notes__[0]
    for other in ({"calibration": BATCHES[:1]}, {"space": {"ffn": [48]}}, {"budget": "parameters<=49K"}):
        with pytest.raises(CompressError, match="unfinished run of another request"):
            method(model, **{"budget": "parameters<=50K", **asked, **other}, out=tmp_path / "out")
    method(model, "parameters<=50K", out=tmp_path / "out", **asked)
    assert len(batches) == 3  # two of them, one of them twice
    assert [trials.count(name) for name in dict.fromkeys(trials)] == [1, 2, *[1] * (len(set(trials)) - 2)]
    method(model, "parameters<=50K", out=tmp_path / "at once", **asked)
    for name in ("search.json", "recipe-1.yaml"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "at once" / name).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "at once"}


def _stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_finds_the_same(run, command, whole, tmp_path):
    out = tmp_path / "out"
    code = "from fxcompress.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, command(out))], stderr=subprocess.DEVNULL)
    journal = folder_of(out) / "journal.json"
    while process.poll() is None and _trials(journal) < 2:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert _trials(journal) >= 2
    result = run(*command(out))
    assert result.exit_code == 0, result.output
    for name in FILES - {"pareto.png", "search.html"}:
        mine, theirs = ((folder / name).read_text() for folder in (out, whole))
        assert mine.partition("calibration:")[0] == theirs.partition("calibration:")[0], name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _trials(journal: Path) -> int:
    try:
        return sum(stage.startswith("trial ") for stage in json.loads(journal.read_text())["stages"])
    except FileNotFoundError:
        return 0
