"""The shipped recipes do what they say from the shell, with values, every law and a text of one's own: in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from fxcompress.cli import app
from fxcompress.recipe import Calibration, Recipe
from tests import models
from tests.recipes import scaled
from tests.recipes.published import PUBLISHED, RECIPES, total

FILES = sorted(path.name for path in RECIPES.glob("*.yaml"))
QUICK = ("minitron-width",)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PUBLISHED]


def compress(*arguments: object) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compress", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def checkpoint(config: dict[str, Any], folder: Path) -> Path:
    """A model's directory, with a tokenizer of one word an id."""
    values = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    models.perturb(model.eval()).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "my.txt").write_text(" ".join(f"w{3 + i * i % 90}" for i in range(200)))
    return tmp_path / "my.txt"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_in_small_gives_the_published_model_in_small(name, text, tmp_path):
    model, out, file = checkpoint(scaled.original(name), tmp_path / "model"), tmp_path / "out", tmp_path / "small.yaml"
    file.write_text(scaled.recipe(name).to_yaml())
    done = compress(model, "--recipe", file, "--calibration", text, "--samples", 2, "--length", 16, "-o", out)
    assert done.exit_code == 0, done.output
    small = AutoModelForCausalLM.from_pretrained(out)
    assert small.num_parameters() == total(scaled.result(name))
    expected = {key: size for key, size in scaled.result(name).items() if key != "dtype"}
    assert {key: getattr(small.config, key) for key in expected} == expected
    report = json.loads((out / "report.json").read_text())
    laws = [law for entry in report["passes"] for law in entry["laws"]]
    assert all(law["holds"] for law in laws)
    assert {law["name"] for law in laws if law["error"] is not None} >= {"shapes", "prune equals mask", "count"}
    assert max(report["capture_error"], report["reload_error"]) < 1e-3


# The files


def test_every_published_model_has_a_recipe_and_every_recipe_its_model():
    assert [name.removesuffix(".yaml") for name in FILES] == sorted(PUBLISHED)


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_loads_without_its_text_being_there(file):
    recipe = Recipe.load(RECIPES / file)
    assert recipe.passes()
    if recipe.calibration is not None:
        path = str(RECIPES / "calibration.txt")
        assert recipe.calibration == Calibration(file=path, samples=1024, length=8192, batch_size=1)
        assert not Path(path).exists()


@pytest.mark.parametrize("file", FILES)
def test_a_text_is_named_where_activations_are_scored_and_nowhere_else(file):
    recipe = Recipe.load(RECIPES / file)
    cuts = [p for p in recipe.steps if "size" in p.options()]
    assert all(str(p.options()["score"]).startswith("activation") for p in cuts)
    assert (recipe.calibration is not None) == any(p.observes for p in recipe.steps) == bool(cuts)


# What they do not do


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model of a family, to which the shipped sizes do not belong."""
    folder = tmp_path_factory.mktemp("tiny")
    return lambda name: checkpoint({"model_type": name, **models.CONFIGS[name]}, folder / name)


def test_a_text_that_is_not_there_is_refused_and_nothing_is_written(tiny, tmp_path):
    done = compress(tiny("llama"), "--recipe", RECIPES / "minitron-width.yaml", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "calibration.txt cannot be read" in done.stderr
    assert not (tmp_path / "out").exists()


REFUSED = {
    ("llama", "minitron-width"): "size=9216 is more than the 80 there are",
    ("llama", "minitron-depth"): "layer 15 is out of range, the model has 3",
    ("llama", "minitron-ssm"): "no ssm head in this model",
    ("nemotron_h", "minitron-ssm"): "size=112 is more than the 12 there are",
    ("nemotron_h", "mini-puzzle"): "size=30720 is more than the 80 there are",
}


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_a_model_of_other_sizes_is_refused_in_its_own_words(tiny, text, tmp_path, family, name):
    calibration = ["--calibration", text, "--samples", 2, "--length", 8] if name != "minitron-depth" else []
    out = tmp_path / "out"
    done = compress(tiny(family), "--recipe", RECIPES / f"{name}.yaml", *calibration, "-o", out)
    assert done.exit_code == 2
    assert REFUSED[family, name] in " ".join(done.stderr.split())
    assert not out.exists()
