"""Zeros survive being saved: dense files load anywhere, packed ones are smaller, and what was filled is refused."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import fxcompress
from fxcompress import CompressError
from fxcompress.cli import app
from fxcompress.files import sha256
from fxcompress.journal import folder_of
from fxcompress.packed import pack, unpack
from fxcompress.passes import PruneFFN, PruneSSMHeads, PruneWeights, RemoveLayers
from fxcompress.recipe import Recipe
from fxcompress.run import Request, plan
from fxcompress.shelf import Shelf
from fxcompress.source import open_source
from fxcompress.weights.pattern import parse
from tests import models

BATCHES = [{"input_ids": models.ids(4, 60)}]


@functools.cache
def half(name: str = "llama") -> fxcompress.CompressedModel:
    passes = [PruneWeights(sparsity=0.5, method="wanda")]
    return fxcompress.apply(models.captured(name, torch.float32), passes, calibration=BATCHES)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


# Dense files


def test_stock_transformers_loads_the_zeros(tmp_path):
    out = half().save_pretrained(tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(out).eval()
    for name in half().program.sparse:
        assert ((stock.get_parameter(name) == 0).sum(-1) == stock.get_parameter(name).shape[-1] // 2).all()
    torch.testing.assert_close(logits(stock, models.ids(2, 9)), logits(half(), models.ids(2, 9)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("passes", [[], [RemoveLayers(layers=(0,))], [RemoveLayers(layers=(0,), part="ffn")]])
def test_patterns_are_known_after_loading_and_after_loading_again(passes, tmp_path):
    """Also of layers that are counted anew, by stock transformers, by a type of ours and by the graph alone."""
    first = fxcompress.apply(half(), passes).save_pretrained(tmp_path / "first")
    again = fxcompress.load(first)
    second = fxcompress.load(again.save_pretrained(tmp_path / "second"))
    for found in (again, second):
        assert len(found.program.sparse) == len([n for n in half().program.sparse if n in again.program.state])
        for name, text in found.program.sparse.items():
            assert text == "0.5 per row"
            assert (found.program.read(name) == 0).float().mean() == 0.5


def test_zeros_that_were_filled_are_refused(tmp_path):
    small = fxcompress.apply(half(), [])
    name = "model.layers.0.mlp.up_proj.weight"
    small.program.state[name].data[3].add_(1e-3)
    with pytest.raises(
        CompressError, match=rf"{name} was pruned to 0.5 per row, and 24 weights that have to be zero are not"
    ):
        small.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_row_is_held_to_its_zeros():
    """Neither may one weight of an odd row come back, nor rows that are all zero stand for others."""
    value = torch.ones(1, 4, 7)
    value[:, :, :4] = 0
    assert parse("0.5 per row").missing(value == 0) == 0
    filled = value.clone()
    filled[0, 1, 0] = 1.0
    assert parse("0.5 per row").missing(filled == 0) == 1
    value[0, :2], value[0, 2:] = 0, 1
    assert parse("0.5 per row").missing(value == 0) == 8


@pytest.mark.parametrize(("text", "said"), [("7:9", "7:9 needs groups of 9 weights"), ("half", "'half' is no pattern")])
def test_a_pattern_that_a_matrix_cannot_have_is_refused_by_its_name(text, said, tmp_path):
    small = fxcompress.apply(half(), [])
    name = "model.layers.0.mlp.up_proj.weight"
    small.program.sparse[name] = text
    with pytest.raises(CompressError, match=f"{name}: {said}"):
        small.save_pretrained(tmp_path / "out")


def test_a_plan_of_a_pruned_checkpoint_refuses_what_the_run_would_refuse(tmp_path):
    """Stock transformers loads it, so that it is planned by its config, which says nothing of zeros."""
    source = open_source(half().save_pretrained(tmp_path / "out"))
    assert source.on_meta().program.sparse == source.opened().program.sparse == half().program.sparse
    with pytest.raises(CompressError, match=r"PruneFFN would cut .*, whose weights were pruned to 0.5"):
        plan(Request(source, Recipe((PruneFFN(ratio=0.5),)), sizes_only=True))


# Packed files


@pytest.mark.parametrize("name", ["llama", "nemotron_h", "mixtral", "gpt2"])
def test_packed_weights_load_bit_for_bit_in_fewer_bytes(name, tmp_path):
    small = half(name)
    dense = small.save_pretrained(tmp_path / "dense")
    packed = small.save_pretrained(tmp_path / "packed", packed=True)
    again = fxcompress.load(packed)
    assert all(torch.equal(again.program.read(n), small.program.read(n)) for n in small.program.state)
    assert again.program.sparse == small.program.sparse
    files = weights(packed)
    for name in small.program.sparse:
        parts = [files[f"{name}.{part}"] for part in ("bitmap", "nonzero")]
        count = small.program.state[name].numel()
        assert sum(t.numel() * t.element_size() for t in parts) == 4 * count / 2 + count / 8
    assert sum(f.stat().st_size for f in packed.glob("*.safetensors")) < (dense / "model.safetensors").stat().st_size


def test_two_of_four_in_bfloat16_take_0_5625_of_the_bytes():
    value = torch.randn(64, 128, dtype=torch.bfloat16)
    value.view(64, 32, 4)[:, :, 2:] = 0
    bytes_of = {name: t.numel() * t.element_size() for name, t in pack("w", value).items()}
    assert (bytes_of["w.bitmap"] + bytes_of["w.nonzero"]) / (2 * value.numel()) == 0.5625


def test_a_packed_result_is_no_checkpoint_of_its_class(tmp_path):
    out = half().save_pretrained(tmp_path / "out", packed=True)
    assert not (out / "config.json").exists()
    manifest = json.loads((out / "fxcompress.json").read_text())
    assert manifest["loads_with"] == "graph"
    assert "packed" in manifest["why_not_transformers"]


def test_a_packed_result_of_several_passes_is_compressed_again(tmp_path):
    passes = [PruneSSMHeads(size=6), RemoveLayers(layers=(1,)), PruneWeights(pattern="2:4", method="magnitude")]
    small = fxcompress.apply(models.captured("nemotron_h", torch.float32), passes)
    packed = small.save_pretrained(tmp_path / "packed", packed=True)
    shorter = fxcompress.apply(fxcompress.load(packed), [RemoveLayers(layers=(0,))])
    dense = shorter.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(fxcompress.load(dense), models.ids(2, 7)), logits(shorter, models.ids(2, 7)))


def test_there_is_nothing_to_pack_in_a_dense_model(tmp_path):
    small = fxcompress.apply(models.captured("llama", torch.float32), [PruneFFN(ratio=0.5)])
    with pytest.raises(CompressError, match="no weight of the model was pruned"):
        small.save_pretrained(tmp_path / "out", packed=True)


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_packing_is_undone(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator).to(dtype) * (torch.rand(shape, generator=generator) < 0.5)
    assert torch.equal(unpack("w", *pack("w", value).values()), value)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("shape", torch.tensor([1 << 40, 1 << 40])),
        ("shape", torch.tensor([-4, -6])),
        ("shape", torch.tensor([4.0, 6.0])),
        ("shape", torch.tensor([[4, 6]])),
        ("shape", torch.tensor([4, 60])),
        ("bitmap", torch.zeros(3, dtype=torch.int64)),
        ("bitmap", torch.zeros(1 << 10, dtype=torch.uint8)),
        ("nonzero", torch.ones(1000)),
        ("nonzero", torch.ones(0)),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(part, other):
    parts = pack("w", torch.eye(6)[:4]) | {f"w.{part}": other}
    with pytest.raises(CompressError, match="w is packed with"):
        unpack("w", *(parts[f"w.{name}"] for name in ("bitmap", "nonzero", "shape")))


def test_a_damaged_packed_file_is_refused_by_its_parameter(tmp_path):
    out = half().save_pretrained(tmp_path / "out", packed=True)
    file, name = out / "model.safetensors", next(iter(half().program.sparse))
    tensors = load_file(file)
    tensors[f"{name}.nonzero"] = tensors[f"{name}.nonzero"][:-1]
    save_file(tensors, file)
    manifest = json.loads((out / "fxcompress.json").read_text())
    manifest["sha256"][file.name] = sha256(file)
    (out / "fxcompress.json").write_text(json.dumps(manifest))
    with pytest.raises(CompressError, match=f"{name} is packed with"):
        fxcompress.load(out)


# From files to files


@pytest.fixture(scope="module", params=["nemotron_h_moe", pytest.param("zamba2", marks=pytest.mark.slow)])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param
    models.tiny(request.param).save_pretrained(folder)
    return folder


MAGNITUDE = "PruneWeights(sparsity=0.5, method='magnitude')"
PASSES = [PruneFFN(ratio=0.25), PruneWeights(sparsity=0.5, method="sparsegpt")]


def test_from_files_comes_what_comes_from_memory_and_again_after_a_stop(checkpoint, tmp_path, monkeypatch):
    """Stopped after each block in turn, the run goes on with the next one; the files are the same to the byte."""
    fxcompress.compress(checkpoint, tmp_path / "whole", PASSES, BATCHES)
    small = fxcompress.apply(AutoModelForCausalLM.from_pretrained(checkpoint).eval(), PASSES, BATCHES)
    found = fxcompress.load(tmp_path / "whole")
    ids = models.ids(2, 9)
    torch.testing.assert_close(logits(found, ids), logits(small, ids), rtol=1e-4, atol=1e-4)

    put, stops = Shelf.put, []

    def stop_after(self, part, *arguments):
        put(self, part, *arguments)
        stops.append(part)
        raise KeyboardInterrupt

    monkeypatch.setattr(Shelf, "put", stop_after)
    while not (tmp_path / "stopped").exists() and len(stops) < 30:
        try:
            fxcompress.compress(checkpoint, tmp_path / "stopped", PASSES, BATCHES)
        except KeyboardInterrupt:
            assert folder_of(tmp_path / "stopped").exists()
    assert stops == sorted(set(stops))  # none was done twice
    assert len(stops) > 3
    whole, again = (weights(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_files_that_are_open_go_by_layers(checkpoint, tmp_path):
    """A large model has more matrices than a process may have files open."""
    before = len(os.listdir("/proc/self/fd"))
    small = fxcompress.compress(checkpoint, tmp_path / "out", [PruneWeights(sparsity=0.5, method="magnitude")])
    layers = sum(map(len, small.program.layers().values()))
    assert len(os.listdir("/proc/self/fd")) - before <= layers + 2 < len(small.program.sparse)


def test_the_command_line_packs(tmp_path, checkpoint):
    command = ["compress", str(checkpoint), "--packed", "-o"]
    run = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--pass", MAGNITUDE, "--dry-run"])
    assert "stock transformers would not load the result; it loads with fxcompress.load alone" in " ".join(
        run.output.split()
    )
    run = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--pass", MAGNITUDE])
    assert run.exit_code == 0, run.output
    assert fxcompress.load(tmp_path / "a").program.sparse
    run = CliRunner().invoke(app, [*command, str(tmp_path / "b"), "--pass", "PruneFFN(ratio=0.5)"])
    assert run.exit_code == 2
    assert not (tmp_path / "b").exists()
