"""``distill`` tells what it will take, trains, tells what it gave; and what cannot be is a line and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from fxcompress.manifest import read_manifest

QUICK = ("--length", 8, "--batch-size", 2, "--steps", 4, "--lr", 1e-3, "--log-every", 2, "--device", "cpu")


@pytest.fixture
def text(tmp_path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{3 + i * i % 90}" for i in range(200)))
    return file


@pytest.fixture
def refused(run, small, saved, text, tmp_path):
    """Run it with options, expect a refusal, and return what it said."""

    def refuse(*options: object, student: object = small, teacher: object = None, data: object = text) -> str:
        before = sorted(tmp_path.rglob("*"))
        named = ("--teacher", teacher or saved("llama"), "--data", data, "-o", tmp_path / "out")
        result = run("distill", student, *named, *QUICK, *options)
        assert result.exit_code == 2, result.output
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return result.stderr.partition("error: ")[2]

    return refuse


def test_a_student_is_trained_and_saved_with_its_tokenizer(run, small, saved, text, tmp_path):
    command = ("distill", small, "--teacher", saved("llama"), "--data", text, "-o", tmp_path / "out", *QUICK)
    result = run(*command, "--held-out", text)
    assert result.exit_code == 0, result.output
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.intermediate_size == 60
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w5 w6")["input_ids"] == [5, 6]
    assert "memory altogether" in result.stderr
    assert "step 2/4  loss " in result.stderr
    assert " tokens/s  " in result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[1] for row in rows if len(row) > 5 and row[0] == "│"] == ["before", "after", "teacher"]
    assert f"saved to {tmp_path / 'out'}" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]
    note = read_manifest(tmp_path / "out")["report"]["notes"]["distillation"]
    assert [step for step, _ in note["losses"]] == [2, 4]


def test_nothing_of_this_machine_is_in_the_result(run, small, saved, text, tmp_path):
    run("distill", small, "--teacher", saved("llama"), "--data", text, "-o", tmp_path / "out", *QUICK)
    for file in (tmp_path / "out").glob("*.json"):
        assert str(saved("llama").parent) not in file.read_text(), file.name
        assert str(tmp_path) not in file.read_text(), file.name


def test_a_dry_run_shows_the_estimate_and_writes_nothing(run, small, saved, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("it was trained"))
    result = run("distill", small, "--teacher", saved("llama"), "--data", text, *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "parameters that are trained" in result.stdout
    assert "56 in 4 steps" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.slow
def test_a_stopped_run_goes_on(run, small, saved, text, tmp_path, monkeypatch):
    def stop(line):
        if line.step == 4:
            raise KeyboardInterrupt
        return ""

    command = ("distill", small, "--teacher", saved("llama"), "--data", text, "-o", tmp_path / "out", *QUICK)
    with monkeypatch.context() as stopping:
        stopping.setattr(sys.modules["fxcompress.cli.distill"], "_told", stop)
        result = run(*command, "--save-every", 2)
    assert result.exit_code == 130
    assert "training to step 2; the same command goes on from there" in result.stderr
    result = run(*command, "--save-every", 2)
    assert result.exit_code == 0, result.output
    assert "step 2/4" not in result.stderr
    assert "step 4/4" in result.stderr


def test_an_output_is_asked_for(run, small, saved, text):
    result = run("distill", small, "--teacher", saved("llama"), "--data", text, *QUICK)
    assert result.exit_code == 2
    assert "-o OUT is missing" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-size", 30), "the data has 25 rows and a step takes 30"),
        (("--ce", "much"), "--ce 'much' is neither a number nor 'dynamic'"),
        (("--states", "dynamic", "--state-pair", "1-2"), "--state-pair '1-2' is not of the form 14:30"),
        (("--state-pair", "1:1"), "pairs are of intermediate states: give states a weight"),
        (("--temperature", 0), "temperature=0.0 is not a positive number"),
        (("--top-k", 3, "--divergence", "jsd"), "top_k is a number of tokens from 1 on, and goes with forward_kl"),
        (("--length", 500), "the text has 200 tokens, less than one window of 500"),
        (("--held-out", "nowhere.txt"), "the text nowhere.txt cannot be read"),
    ],
)
def test_a_request_that_cannot_be_is_refused(refused, options, said):
    assert said in refused(*options)


def test_a_teacher_that_is_not_there_is_refused(refused, tmp_path):
    assert "does not exist" in refused(teacher=tmp_path / "nowhere")


def test_a_teacher_is_asked_for(run, small, text, tmp_path):
    result = run("distill", small, "--data", text, "-o", tmp_path / "out", *QUICK)
    assert result.exit_code == 2
    assert "say what to learn from by one of --teacher DIR and --correct" in result.stderr


def test_a_teacher_is_corrected_on_the_text(run, saved, text, tmp_path):
    command = ("distill", saved("llama"), "--correct", "--data", text, "--held-out", text, "-o", tmp_path / "out")
    result = run(*command, *QUICK)
    assert result.exit_code == 0, result.output
    scores = read_manifest(tmp_path / "out")["report"]["notes"]["distillation"]["held_out"]
    assert scores["after"]["loss"] < scores["before"]["loss"]
    assert scores.keys() == {"before", "after"}


@pytest.mark.slow
def test_an_offline_teacher_is_written_once_and_used_again(run, small, saved, text, tmp_path):
    command = ("distill", small, "--teacher", saved("llama"), "--data", text, "--top-k", 8, *QUICK)
    for out in ("a", "b"):
        result = run(*command, "--offline", tmp_path / "kept", "-o", tmp_path / out)
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "kept", "text.txt"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_text_that_is_not_there_is_refused(refused):
    assert "the text nowhere.txt cannot be read" in refused(data="nowhere.txt")


def test_a_teacher_of_another_vocabulary_is_refused_before_weights_are_read(refused, copied, monkeypatch):
    teacher = copied("llama")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "vocab_size": 90}))
    monkeypatch.setattr("fxcompress.stored.Stored.read", lambda *_: pytest.fail("weights were read"))
    assert "the student has 96 token ids and the teacher 90" in refused(teacher=teacher)


def test_an_output_in_the_student_is_refused(run, copied, saved, text):
    student = copied("llama")
    result = run("distill", student, "--teacher", saved("llama"), "--data", text, "-o", student / "out", *QUICK)
    assert result.exit_code == 2
    assert "lies in the directory of the model, which is left alone" in result.stderr


def test_fp8_is_refused_without_a_gpu_for_it(refused):
    assert "FP8 needs an NVIDIA GPU of compute capability 8.9 or more" in refused("--fp8")
