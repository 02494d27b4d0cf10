"""The judge of ``tools/peers`` sees what it is there for: each fault is planted in the files a peer would leave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.peers import originals

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from peers import cases, reload
from peers.judge import is_two_of_four, judge

KEPT = [0, 2, 5, 6]  # two query heads of each KV head
HEAD = 8


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return originals.write("llama", tmp_path_factory.mktemp("originals"))


def halved(original: Path, heads: list[int]) -> torch.nn.Module:
    """Half of the heads and of the FFN, as a careful user of plain PyTorch would cut them."""
    model = cases.load(original)
    rows = torch.tensor([HEAD * head + i for head in heads for i in range(HEAD)])
    model.config.num_attention_heads, model.config.intermediate_size = len(heads), 40
    for layer in model.model.layers:
        cut(layer.self_attn.q_proj, rows, dim=0)
        cut(layer.self_attn.o_proj, rows, dim=1)
        layer.self_attn.num_key_value_groups = len(heads) // 2
        for linear, dim in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
            cut(linear, torch.arange(40), dim)
    return model


def cut(linear: torch.nn.Linear, kept: torch.Tensor, dim: int) -> None:
    linear.weight.data = linear.weight.data.index_select(dim, kept)


def judged(model: torch.nn.Module, original: Path, out: Path) -> list[str]:
    cases.record(model, original, out)
    reload.main(original, out)
    return judge("heads_ffn", original, out).faults


def test_a_model_that_was_cut_by_hand_and_well_passes(original, tmp_path):
    assert judged(halved(original, KEPT), original, tmp_path) == []


def test_fewer_heads_than_asked_are_a_fault(original, tmp_path):
    assert judged(halved(original, [0, 1, 2, 4, 5, 6]), original, tmp_path) == ["heads 25% of 50%"]


def test_query_heads_on_another_kv_head_are_a_fault(original, tmp_path):
    faults = judged(halved(original, [0, 1, 2, 4]), original, tmp_path)
    assert faults[0] == "query heads read another KV head"
    assert "differs from the masked original" in faults[1]


def test_a_head_cut_through_is_a_fault(original, tmp_path):
    model = halved(original, KEPT)
    q = model.model.layers[1].self_attn.q_proj.weight.data
    q[:8], q[8:16] = torch.cat([q[:4], q[8:12]]), torch.cat([q[4:8], q[12:16]])
    assert judged(model, original, tmp_path)[0] == "heads cut through"


def test_a_changed_weight_is_a_fault(original, tmp_path):
    model = halved(original, KEPT)
    model.model.layers[0].mlp.up_proj.weight.data += 0.1
    assert judged(model, original, tmp_path) == ["rows of the result are not rows of the original"]


def test_embeddings_that_are_no_longer_tied_are_a_fault(original, tmp_path):
    model = halved(original, KEPT)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert judged(model, original, tmp_path) == ["no longer tied"]


def test_tensors_that_are_not_in_the_file_are_a_fault(original, tmp_path):
    cases.record(halved(original, KEPT), original, tmp_path)
    file = tmp_path / "saved" / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if ".layers.2.mlp" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    reload.main(original, tmp_path)
    assert judge("heads_ffn", original, tmp_path).faults == ["3 tensors random after reload"]


def test_two_of_four_is_two_of_four_neighbours_along_the_inputs():
    assert is_two_of_four(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]]))
    assert not is_two_of_four(torch.tensor([[1.0, 0, 2, 4, 0, 0, 0, 0]]))
    assert not is_two_of_four(torch.tensor([[0.0, 1, 2]]))
