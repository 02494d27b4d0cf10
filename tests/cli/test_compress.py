"""``compress`` writes a checkpoint with its report and its origin beside it, and leaves the given model alone."""

from __future__ import annotations

import hashlib
import json

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import fxcompress
from fxcompress.manifest import read_manifest
from fxcompress.recipe import Calibration, Recipe
from tests import models

FFN = "PruneFFN(ratio=0.25)"


def hashes(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def last_run(folder) -> dict:
    return read_manifest(folder)["report"]["notes"]["runs"][-1]


def test_the_result_is_a_checkpoint_of_transformers(small):
    model = AutoModelForCausalLM.from_pretrained(small)
    assert model.config.intermediate_size == 60
    assert AutoTokenizer.from_pretrained(small)("w5 w6")["input_ids"] == [5, 6]


def test_the_report_lies_beside_it_in_three_forms(small):
    assert "all 4 laws hold" in " ".join((small / "report.html").read_text().split())
    assert "PruneFFN(ratio=0.25)" in (small / "report.txt").read_text()
    assert json.loads((small / "report.json").read_text()) == read_manifest(small)["report"]


def test_the_manifest_says_what_it_was_made_of_and_how(small, saved):
    run = last_run(small)
    assert Recipe.from_yaml(run["recipe"]).passes() == [Recipe.parse_pass(FFN)]
    assert run["versions"]["torch"] == torch.__version__
    assert run["model"] == "llama"
    assert run["sha256"]["model.safetensors"] == hashes(saved("llama"))["model.safetensors"]


def test_nothing_of_this_machine_is_in_the_result(small, saved):
    for file in small.glob("*.json"):
        assert str(saved("llama").parent) not in file.read_text(), file.name
        assert str(small.parent) not in file.read_text(), file.name


def test_a_recipe_with_calibration_is_carried_out_and_the_original_is_left_alone(run, saved, tmp_path):
    before = hashes(saved("llama"))
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + i * i % 90}" for i in range(200)))
    recipe = {
        "version": 1,
        "passes": [{"PruneFFN": {"ratio": 0.25, "score": "activation"}}, {"RemoveLayers": {"layers": [1]}}],
        "calibration": {"file": "text.txt", "samples": 99, "length": 8},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "new" / "out"
    result = run("compress", saved("llama"), "-o", out, "--recipe", tmp_path / "r.yaml", "--samples", 20)
    assert result.exit_code == 0, result.output
    assert "it loads with transformers" in result.stdout
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    assert Recipe.from_yaml(last_run(out)["recipe"]).calibration == Calibration(file="text.txt", samples=20, length=8)
    assert last_run(out)["sha256"]["text.txt"] == hashlib.sha256((tmp_path / "text.txt").read_bytes()).hexdigest()
    assert hashes(saved("llama")) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_stock_transformers_cannot_say_is_saved_with_the_reason(heads):
    assert "from_pretrained once fxcompress is imported" in (heads / "stdout").read_text()
    assert "no config of Mamba2ForCausalLM" in read_manifest(heads)["why_not_transformers"]
    assert json.loads((heads / "config.json").read_text())["model_type"] == "fxcompress"
    assert fxcompress.load(heads)(input_ids=models.ids(1, 9)).logits.isfinite().all()


def test_a_config_alone_can_be_tried_with_random_weights_and_without_proof(run, saved, tmp_path):
    config = json.loads((saved("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    options = ["-o", tmp_path / "out", "--pass", FFN, "--random", "--no-verify"]
    result = run("compress", tmp_path / "config.json", *options)
    assert result.exit_code == 0, result.output
    assert "prune equals mask" not in result.stdout
    assert last_run(tmp_path / "out")["random"]
    assert last_run(tmp_path / "out")["sha256"] == {}


def test_a_dry_run_shows_sizes_and_config_and_writes_nothing(run, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text((saved("llama") / "config.json").read_text())
    result = run("compress", "config.json", "--dry-run", "--pass", FFN, "--pass", "RemoveLayers(layers=[0])")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["│", "intermediate_size", "│", "80", "│", "60", "│"] in rows
    assert ["│", "num_hidden_layers", "│", "2", "│", "1", "│"] in rows
    assert "hidden_size" not in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_a_dry_run_needs_neither_weights_nor_the_text_that_scores_need(run, saved, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((saved("llama") / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    p = "PruneFFN(size=40, score='activation')"
    result = run("compress", "config.json", "--dry-run", "--pass", p, "--calibration", "nowhere.txt")
    assert result.exit_code == 0, result.output
    assert "intermediate_size" in result.output


def test_a_dry_run_says_when_no_config_describes_the_result(run, saved):
    result = run("compress", saved("mamba2"), "--dry-run", "--pass", "PruneSSMHeads(ratio=0.25)")
    assert result.exit_code == 0, result.output
    assert "stock transformers would not load the result" in result.stdout


def test_a_dry_run_refuses_what_the_real_one_would(run, saved):
    result = run("compress", saved("llama"), "--dry-run", "--pass", "PruneFFN(size=81)")
    assert result.exit_code == 2
    assert "size=81 is more than the 80 there are" in result.stderr


def test_the_stored_report_can_be_printed(run, small):
    result = run("report", small)
    assert result.exit_code == 0
    assert "PruneFFN(ratio=0.25)" in result.stdout
    assert "saved equals reloaded" in result.stdout


def test_steps_below_a_second_leave_no_line(small, capsys):
    from rich.console import Console

    from fxcompress.cli.progress import Steps

    with Steps(Console(stderr=True))("a quick step", 2) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
