"""What cannot be carried out is refused before work starts: exit code 2, a line or two why, nothing written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxcompress import verify
from fxcompress.verify import Law

FFN = ("--pass", "PruneFFN(ratio=0.25)")
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


@pytest.fixture
def refused(run, tmp_path) -> Callable[..., str]:
    """Run ``compress MODEL -o OUT ...``, expect a refusal, and return what it said."""

    def refuse(model: object, *options: object, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        before = _tree(tmp_path)
        result = run("compress", model, "-o", out, *(options or FFN))
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert len(result.stderr.partition("error: ")[2].strip().splitlines()) <= 2
        assert _tree(tmp_path) == before, "something was written"
        return said[0].removeprefix("error: ")

    return refuse


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def set_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**values, **fields}))

    return change


def set_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def set_values(*values: float) -> Callable[[Path], None]:
    name = "model.layers.1.mlp.up_proj.weight"
    return set_tensors(lambda tensors: tensors[name].view(-1)[: len(values)].copy_(torch.tensor(values)))


def shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, chosen in parts.items() for name in chosen}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def without_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "b.safetensors").unlink()


def with_a_shard_elsewhere(folder: Path) -> None:
    shard(folder)
    text = (folder / INDEX).read_text().replace("b.safetensors", "../b.safetensors")
    (folder / INDEX).write_text(text)


def cut_short(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 50)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / CONFIG).unlink(), "holds no config.json"),
    "a config that is no JSON": (lambda d: (d / CONFIG).write_text("{"), "config.json is not JSON"),
    "a config without a type": (
        lambda d: (d / CONFIG).write_text("{}"),
        "is not a model's config: it has no model_type",
    ),
    "an unknown type": (set_config(model_type="lama"), "model_type 'lama' is unknown to transformers"),
    "a type of its own code": (
        set_config(model_type="mine", auto_map={}),
        "brings code of its own, which is never run",
    ),
    "a type that is no language model": (set_config(model_type="vit"), "no causal language model of model_type 'vit'"),
    "a config with a wrong value": (set_config(hidden_size="many"), "config.json is refused by transformers"),
    "quantised weights": (set_config(quantization_config={"quant_method": "gptq"}), "the weights are quantised (gptq)"),
    "a pickle": (pickled, "pytorch_model.bin is a pickle and may run code"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "has no weights, neither model.safetensors nor"),
    "a missing shard": (without_a_shard, "b.safetensors is missing: the index names 2 files"),
    "a shard outside": (with_a_shard_elsewhere, "names a file outside its directory: ../b.safetensors"),
    "an index that is none": (lambda d: (d / INDEX).write_text("[]"), "is not an index of weights"),
    "a file cut short": (cut_short, "is damaged or cut short"),
    "an empty file": (lambda d: (d / WEIGHTS).write_bytes(b""), "(0 bytes) is damaged or cut short"),
    "tensors missing": (
        set_tensors(lambda t: t.pop("model.norm.weight")),
        "1 tensor is missing from the weights: model.norm.weight",
    ),
    "tensors of another shape": (
        set_config(intermediate_size=96),
        "model.layers.0.mlp.down_proj.weight is (48, 80), not (48, 96)",
    ),
    "NaN and Inf": (
        set_values(float("nan"), float("-inf")),
        "up_proj.weight (80, 48) holds 2 values that are NaN or Inf",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused(refused, copied, what):
    break_it, said = BROKEN[what]
    folder = copied("llama")
    break_it(folder)
    assert said in refused(folder)


def test_a_sharded_model_is_not_refused(run, copied):
    folder = copied("llama")
    shard(folder)
    assert run("inspect", folder).exit_code == 0


def test_a_model_that_is_not_there_is_refused(refused, tmp_path):
    assert "does not exist: a model is a directory with config.json" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pass", "PruneFNN(ratio=0.25)"], "there is no pass 'PruneFNN' (did you mean PruneFFN"),
        (["--pass", "PruneFFN(ration=0.25)"], "PruneFFN has no option 'ration'"),
        (["--pass", "PruneFFN(ratio='much')"], "PruneFFN.ratio='much': it should be a valid number"),
        (["--pass", "PruneFFN(ratio=1.25)"], "ratio=1.25 is outside [0, 1)"),
        (["--pass", "RemoveLayers(layers=[7])"], "layer 7 is out of range, the model has 2"),
        (["--pass", "PruneFFN(ratio=0.25, layers='model.layers.9')"], "lies wholly under layers='model.layers.9'"),
        (["--pass", "PruneAxes(role='vocabulary', ratio=0.25)"], "PruneVocabulary removes tokens"),
        (
            ["--pass", "PruneAxes(groups='model.embed_tokens.weight[0]', size=64)"],
            "model.embed_tokens.weight[0] is pinned",
        ),
        (["--pass", "PruneSSMHeads(ratio=0.25)"], "no ssm head in this model"),
        (["--pass", "PruneFFN(ratio=0.25, score='activation')"], "needs text to run on: --calibration FILE"),
        ([*FFN, "--samples", "4"], "--samples and --length are about --calibration FILE"),
        ([*FFN, "--recipe", "r.yaml"], "say what to do by one of --recipe FILE and --pass"),
        (["--recipe", "nowhere.yaml"], "the recipe nowhere.yaml cannot be read"),
    ],
)
def test_a_request_that_cannot_be_is_refused(refused, saved, options, said):
    assert said in refused(saved("llama"), *options)


def test_an_output_is_asked_for_unless_it_is_a_dry_run(run, saved):
    result = run("compress", saved("llama"), *FFN)
    assert result.exit_code == 2
    assert "-o OUT is missing" in result.stderr


def test_an_output_that_holds_something_is_left_alone(refused, saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")
    assert "exists and is not an empty directory" in refused(saved("llama"))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "the only copy"


def test_an_output_under_a_file_is_refused(refused, saved, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is not a directory" in refused(saved("llama"), out=tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_in_a_directory_that_is_read_only_is_refused(refused, saved, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "cannot be written to: Permission denied" in refused(saved("llama"), out=tmp_path / "locked" / "out")


def test_too_little_space_is_seen_before_the_weights_are_read(refused, saved, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    monkeypatch.setattr("fxcompress.stored.Stored.read", lambda *_: pytest.fail("weights were read"))
    assert "needs 1.2 MB, 0.0 MB are free" in refused(saved("llama"))


def test_a_disk_that_fills_up_on_the_way_costs_no_finished_stage(run, saved, tmp_path, monkeypatch):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ("compress", saved("llama"), "-o", tmp_path / "out", *FFN)
    with monkeypatch.context() as full:
        full.setattr("fxcompress.export.save.write_shard", fill)
        result = run(*command)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert "checks, pass 0 PruneFFN; the same command goes on from there" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".out.fxcompress"]
    monkeypatch.setattr(verify, "prune_equals_mask", lambda *_: pytest.fail("a finished pass was proven again"))
    assert run(*command).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "the calibration text"),
        (b"\xff\xfe", "the calibration text"),
        (b"w4 w5 w6", "has 3 tokens, enough for 0 samples of 8; 64 are asked for"),
        (b"", "is empty: the tokenizer makes no token of it"),
    ],
)
def test_a_calibration_text_that_does_not_do_is_refused(refused, saved, tmp_path, text, said):
    if text is not None:
        (tmp_path / "text.txt").write_bytes(text)
    assert said in refused(saved("llama"), *FFN, "--calibration", tmp_path / "text.txt", "--length", 8)


def test_calibration_without_a_tokenizer_is_refused(refused, copied, tmp_path):
    folder = copied("llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "text.txt").write_text("w4 " * 600)
    assert "has no tokenizer that can be read" in refused(folder, *FFN, "--calibration", tmp_path / "text.txt")


def test_a_tokenizer_of_another_model_is_refused(refused, copied, tmp_path):
    folder = copied("llama")
    for file in (folder / "tokenizer.json",):
        file.write_text(file.read_text().replace('"w9": 9,', '"w9": 900,'))
    (tmp_path / "text.txt").write_text("w9 " * 600)
    options = ("--calibration", tmp_path / "text.txt", "--length", 8)
    assert "the calibration has the token id 900, the model has 96 ids" in refused(folder, *FFN, *options)


def test_a_proof_that_fails_is_a_fault_of_ours_and_nothing_is_written(run, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "prune_equals_mask", lambda *_: Law("prune equals mask", 0.5, 1e-3))
    result = run("compress", saved("llama"), "-o", tmp_path / "out", *FFN)
    assert result.exit_code == 3
    assert "prune equals mask: FAILS, error 0.5 (at most 0.001). The result is withheld" in result.stderr
    assert _tree(tmp_path) == []
