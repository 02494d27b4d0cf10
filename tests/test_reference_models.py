"""The models in examples/models: they are what their cards say, and the demo of the hybrid runs on them."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.parent for path in (ROOT / "examples" / "models").glob("*/config.json"))


@pytest.fixture(params=MODELS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_is_a_hybrid():
    assert "hybrid" in [folder.name for folder in MODELS]


def test_a_model_is_small_safetensors_in_bfloat16(folder: Path):
    assert {file.suffix for file in folder.iterdir()} == {".json", ".md", ".safetensors"}
    assert (folder / "model.safetensors").stat().st_size < 25e6
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_the_card_says_what_the_training_gave(folder: Path):
    card, known = (folder / "README.md").read_text(), json.loads((folder / "training.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert f"| parameters | {model.num_parameters():,} |" in card
    assert f"**{known['bits_per_byte']:.4f} bits per byte**" in card
    assert f"trained on | {known['tokens']:,} tokens" in card
    assert known["tokens"] >= 20 * model.num_parameters()


def test_the_last_fifth_of_training_gained_less_than_a_hundredth(folder: Path):
    history = json.loads((folder / "training.json").read_text())["history"]
    *_, before = (row["bits_per_byte"] for row in history if row["tokens"] <= 0.8 * history[-1]["tokens"])
    assert 1 - history[-1]["bits_per_byte"] / before < 0.01


def test_a_model_knows_the_held_out_text_better_than_its_letters(folder: Path):
    """About as well as the card says; a damaged weight would show. Unigrams of bytes have 4.5 bits."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = (ROOT / "examples" / "models" / "texts" / "held-out.txt").read_text()[20_000:60_000]
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    rows = ids[: len(ids) // 256 * 256].view(-1, 256)
    with torch.no_grad():
        nats = model(input_ids=rows, labels=rows).loss.item() * rows[:, 1:].numel()
    bits = nats / 0.6931471805599453 / len(tokenizer.decode(rows[:, 1:].flatten()).encode())
    assert bits == pytest.approx(json.loads((folder / "training.json").read_text())["bits_per_byte"], rel=0.1)


@pytest.mark.slow
def test_the_demo_cuts_the_hybrid_teaches_it_and_saves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(ROOT / "tools")
    demo: Any = importlib.import_module("demo_hybrid")
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "out")
    monkeypatch.setattr(demo, "TRAINING", replace(demo.TRAINING, steps=4, learning_rate=1e-3, log_every=1))
    rows = demo.rows_of
    monkeypatch.setattr(demo, "rows_of", lambda *of: rows(*of)[:60])
    demo.main()
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = found["notes"]["distillation"]["held_out"]
    assert scores["teacher"]["perplexity"] < scores["after"]["perplexity"] < scores["before"]["perplexity"]
    said = capsys.readouterr().out
    assert re.search(r"original +│ +2,065,152 │", said)
    assert "PruneSSMHeads(ratio=0.25" in said
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert small.num_parameters() < 0.7 * 2_065_152
