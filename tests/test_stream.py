"""A checkpoint whose weights stay in their files gives what it gives in memory; memory holds one of them at a time."""

from __future__ import annotations

import functools
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fxcompress
from fxcompress import CompressError, capture, observe, opened, source, verify
from fxcompress.axes import AxisMap
from fxcompress.checkpoint import read_checkpoint
from fxcompress.graph import calls
from fxcompress.opened import open_program
from fxcompress.passes import PruneAttentionHeads, PruneEmbedding, PruneFFN, PruneSSMHeads, RemoveLayers
from fxcompress.segments import Kept, segments
from fxcompress.sites import consumers
from fxcompress.statistics import Watch
from fxcompress.stored import Stored
from tests import models

QUICK = ("llama", "mamba2", "nemotron_h_moe", "deepseek_v3", "gpt2")
FAMILIES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in models.ALL]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tiny model, written in several shards."""

    @functools.cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("checkpoints") / name
        models.tiny(name).save_pretrained(folder, max_shard_size="100KB")
        return folder

    return save


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_graph_and_model_give_from_files_what_they_give_in_memory(saved, name):
    program, model = open_program(read_checkpoint(saved(name)))
    inputs = verify.probe(program)
    assert verify.difference(capture(models.tiny(name)).run(*inputs), program.run(*inputs)) == 0
    assert verify.captured_equals_model(model, program).error < 1e-5  # with eager attention: another implementation
    assert all(tensor.is_meta for tensor in program.state.values())  # nothing was kept
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_statistics_gathered_piece_by_piece_are_those_of_the_whole(saved, name):
    streamed, _ = open_program(read_checkpoint(saved(name)))
    ids, mask = models.left_padded(3, 7)
    batches = [{"input_ids": models.ids(2, 11)}, {"input_ids": ids, "attention_mask": mask}]
    found = []
    for program in (streamed, capture(models.tiny(name))):
        axes = program.get(AxisMap)
        kinds = ("tokens", "mean", "variance")
        sites = [site for g in axes.groups if not g.pinned for site in consumers(axes, g)]
        watches = [Watch(kind, (node.name,), dim) for node, dim in sites for kind in kinds]
        values = [(n.name, n.meta["val"]) for n in calls(program.graph) if isinstance(n.meta["val"], Tensor)]
        first, *_, last = [name for name, value in values if value.dim() == 3 and value.shape[2] == 48]
        observer = observe.Observer(program, [*watches, Watch("cosine", (first, last))])
        if program is streamed:
            observer.parts = segments(program, 20_000)
            assert len(observer.parts) > 1
        found.append(observer.sweep(batches))
    assert found[0].keys() == found[1].keys()
    for watch, sums in found[0].items():
        for name, value in sums.items():
            torch.testing.assert_close(value, found[1][watch][name], rtol=1e-3, atol=1e-5)


PASSES = [PruneEmbedding(ratio=0.25), PruneFFN(ratio=0.25), RemoveLayers(layers=(0,))]


@pytest.mark.parametrize(
    ("name", "passes"),
    [("llama", [PruneAttentionHeads(ratio=0.5), *PASSES]), ("nemotron_h_moe", [PruneSSMHeads(ratio=0.25), *PASSES])],
    ids=["llama", "nemotron_h_moe"],
)
def test_compressed_from_files_is_compressed_in_memory(saved, name, passes, tmp_path):
    """Scores, choices, laws and files: every step of a pipeline that cuts what was cut before."""
    streamed, whole = fxcompress.apply(saved(name), passes), fxcompress.apply(models.tiny(name), passes)
    assert [step.to_json() for step in streamed.steps] == [step.to_json() for step in whole.steps]
    assert streamed.program.readers
    files = [small.save_pretrained(tmp_path / str(i)) for i, small in enumerate((streamed, whole))]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in files)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    ids = models.ids(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(streamed(ids).logits, whole(ids).logits)


def test_no_more_than_one_layer_is_read_at_a_time(saved, monkeypatch):
    """What is alive at once, by what has been read and not let go."""
    read, alive, most = Stored.read, [0], [0]

    def change(by: int) -> None:
        alive[0] += by
        most[0] = max(most[0], alive[0])

    def counted(self, name):
        value = read(self, name)
        change(value.numel())
        weakref.finalize(value, change, -value.numel())
        return value

    monkeypatch.setattr(Stored, "read", counted)
    program, model = open_program(read_checkpoint(saved("llama")))
    sizes = {name: tensor.numel() for name, tensor in program.parameters()}
    with torch.no_grad():
        program.run(*verify.probe(program))
    assert most[0] == max(sizes.values())  # one weight
    most[0] = 0
    with torch.no_grad():
        model(**dict(zip(program.inputs, verify.probe(program), strict=True)))
    layer = sum(n for name, n in sizes.items() if ".layers.0." in name)
    assert most[0] <= max(layer, max(sizes.values()))


def test_activations_beyond_the_limit_are_on_disk_and_come_back():
    with Kept(limit=100) as kept:
        values = {"x": torch.randn(5, 5), "n": 7, "same": torch.ones(2).expand(3, 2)}
        kept.put(0, {"y": torch.zeros(10)})
        kept.put(1, values)
        assert kept._file(1).is_file()
        back = kept.take(1)
        assert back["n"] == 7
        assert torch.equal(back["x"], values["x"])
        assert torch.equal(back["same"], values["same"])
        assert kept.used == 40
        folder = kept._file(0).parent
    assert not folder.exists()


def test_a_tensor_that_no_file_has_is_refused_by_name(saved, tmp_path):
    (tmp_path / "model").mkdir()
    tensors = {n: t for file in saved("llama").glob("*.safetensors") for n, t in load_file(file).items()}
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model" / "config.json").write_text((saved("llama") / "config.json").read_text())
    with pytest.raises(CompressError, match=r"1 tensor is missing from the weights: model\.norm\.weight"):
        fxcompress.apply(tmp_path / "model", [PruneFFN(ratio=0.25)])


def test_nan_in_a_file_is_found_before_any_pass(saved, tmp_path):
    (tmp_path / "model").mkdir()
    tensors = {n: t for file in saved("llama").glob("*.safetensors") for n, t in load_file(file).items()}
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model" / "config.json").write_text((saved("llama") / "config.json").read_text())
    with pytest.raises(CompressError, match=r"model\.norm\.weight \(48,\) holds 1 values that are NaN or Inf"):
        fxcompress.apply(tmp_path / "model", [PruneFFN(ratio=0.25)])


def test_what_was_traced_for_the_plan_is_not_traced_again(saved, tmp_path, monkeypatch):
    traced = []
    for module in (source, opened):
        monkeypatch.setattr(module, "capture", lambda model, *given: traced.append(model) or capture(model, *given))
    fxcompress.compress(saved("llama"), tmp_path / "out", [PruneFFN(ratio=0.25)])
    assert len(traced) == 1
