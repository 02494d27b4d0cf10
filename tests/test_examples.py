"""Every example runs as it stands and does what it says. They are read as scripts: what they define is looked at."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fxcompress
from fxcompress.cli import app

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example; returns what it defines, with what it printed as ``printed``."""

    def run_example(name: str, *arguments: str) -> dict[str, Any]:
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        return runpy.run_path(str(path), run_name="__main__") | {"printed": capsys.readouterr().out}

    return run_example


def figures(small: fxcompress.CompressedModel, name: str) -> tuple[int, int]:
    return small.report.summary()[name]


def holds(small: fxcompress.CompressedModel) -> bool:
    return all(law["holds"] for entry in small.report.passes for law in entry["laws"])


def test_the_recipe_for_many_machines_takes_the_published_batch(tmp_path, monkeypatch):
    """torchrun is replaced by one that says what it was asked for; the command line knows every option of it."""
    asked = tmp_path / "torchrun"
    asked.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    texts = ["a text.txt", "b.txt"]
    command = ["sh", str(EXAMPLES / "distill_8b.sh"), "STUDENT", "TEACHER", "OUT", *texts]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    launch, distill = said[: said.index("fxcompress")], said[said.index("fxcompress") + 2 :]
    options = typer.main.get_command(app).commands["distill"].make_context("distill", list(distill)).params
    machines, gpus = (int(launch[launch.index(name) + 1]) for name in ("--nnodes", "--nproc_per_node"))
    assert machines * gpus * options["batch_size"] * options["accumulation"] == 768
    assert (options["length"], options["lr"], options["min_lr"], options["warmup"]) == (8192, 1e-4, 4.5e-7, 60)
    assert options["steps"] * 768 * 8192 == pytest.approx(380e9, rel=1e-3)
    assert [str(path) for path in options["data"]] == texts


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    assert [path.stem for path in EXAMPLES.glob("*.py") if f'run("{path.stem}"' not in source] == []


def test_transformer_becomes_an_ordinary_checkpoint_with_the_sizes_asked_for(run):
    example = run("compress_transformer")
    small, config = example["small"], example["again"].config
    assert (config.intermediate_size, config.num_key_value_heads, config.num_attention_heads) == (120, 2, 4)
    assert config.num_hidden_layers == 3
    before, after = figures(small, "parameters")
    assert before == example["model"].num_parameters()
    assert after == example["again"].num_parameters() < before
    assert holds(small)
    assert "Before and after" in example["printed"]


@pytest.mark.slow
def test_transformer_example_takes_a_directory(run, tmp_path: Path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=40, num_hidden_layers=3, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    config = run("compress_transformer", str(tmp_path))["again"].config
    assert (config.vocab_size, config.intermediate_size, config.num_hidden_layers) == (99, 30, 2)


def test_mamba2_loses_heads_and_channels_and_is_loaded_by_fxcompress(run):
    example = run("compress_mamba2")
    assert example["same"]
    shapes = {name: tuple(tensor.shape) for name, tensor in example["again"].program.state.items()}
    assert shapes["backbone.layers.0.mixer.dt_bias"] == (6,)
    assert shapes["backbone.layers.0.mixer.norm.weight"] == (6 * 8,)
    assert holds(example["small"])
    assert "no checkpoint of transformers" in example["printed"]


def test_hybrid_loses_what_each_pass_is_about_and_generates(run):
    example = run("compress_hybrid")
    config = example["small"].to_transformers().config
    assert (config.mamba_num_heads, config.num_key_value_heads, config.intermediate_size) == (6, 1, 96)
    assert example["out"].shape == (2, 24 + example["NEW_TOKENS"])
    assert holds(example["small"])


def test_plain_modules_lose_channels_and_neurons(run):
    example = run("plain_module")
    cnn, block = example["cnn"], example["block"]
    assert cnn.program.state["blocks.1.conv1.weight"].shape == (24, 32, 3, 3)
    assert cnn.program.state["blocks.1.norm1.running_mean"].shape == (24,)
    assert block.program.state["ffn.2.weight"].shape == (32, 96)
    assert holds(cnn)
    assert holds(block)
    assert cnn(torch.randn(5, 3, 16, 16)).shape == (5, 10)
    assert block(torch.randn(5, 7, 32)).shape == (5, 7, 32)


def test_own_scores_decide_which_neurons_stay(run):
    example = run("custom_score")
    program, results = example["program"], example["results"]
    column_norms = program.state["model.layers.0.mlp.down_proj.weight"].norm(dim=0)
    kept = {name: next(iter(small.steps[0].keep.values())) for name, small in results.items()}
    assert torch.equal(kept["function"], column_norms.topk(80).indices.sort().values)
    assert not torch.equal(kept["tensors"], kept["function"])
    assert figures(results["tensors"], "parameters") == figures(results["magnitude"], "parameters")


@pytest.mark.slow
def test_compiled_model_is_the_same_function(run):
    example = run("compile_backend")
    assert example["error"] < 1e-5
    before, after = figures(example["small"], "parameters")
    assert before - after == 2 * 3 * 64 * 40  # layers, projections, width, a quarter of the neurons


def test_reference_models_are_trained_and_load_with_their_card(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes minutes
    text, output = tmp_path / "text.txt", tmp_path / "output"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 60)
    arguments = (str(text), str(text), "--output", str(output), "--size", "tiny", "--models", "mamba2")
    for _ in range(2):  # the second time nothing is left to do
        run("train_reference", *arguments)
    folder = output / "models" / "mamba2"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert tokenizer.decode(tokenizer("a dark night")["input_ids"]) == "a dark night"
    assert f"| {model.num_parameters():,} |" in (folder / "README.md").read_text()
    assert len(list(output.glob("mamba2-*/log.jsonl"))) == 4  # three learning rates, and the best in full
