"""One threshold for all layers: the lowest scores go wherever they are, and layers end up with sizes of their own."""

from __future__ import annotations

import pytest
import torch

import fxcompress
from fxcompress import CompressError
from fxcompress.axes import AxisMap
from fxcompress.passes import PruneFFN, PruneSSMHeads
from tests import models


def scores_by_layer(name: str, role: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    groups = [g for g in models.captured(name).get(AxisMap).groups if role in g.roles]
    return {g.key: torch.rand(g.sizes, generator=generator) * (i + 1) for i, g in enumerate(groups)}


def test_what_goes_is_the_lowest_of_all_layers_together():
    values = scores_by_layer("llama", "ffn_neuron")
    small = fxcompress.apply(models.captured("llama"), [PruneFFN(ratio=0.25, scope="global", score=values)])
    flat = torch.cat(list(values.values()))
    threshold = flat.sort().values[60]
    for key, kept in small.steps[0].keep.items():
        assert kept.tolist() == (values[key] >= threshold).nonzero().flatten().tolist()
    rows = small.report.passes[0]["rows"]
    assert sum(row["got"] for row in rows) == sum(row["asked"] for row in rows) == 60
    assert len({row["got"] for row in rows}) > 1
    assert all(law["holds"] for law in small.report.passes[0]["laws"])


def test_groups_of_heads_stay_of_one_size_within_a_layer():
    p = PruneSSMHeads(ratio=0.4, scope="global", score=scores_by_layer("mamba2", "ssm_head"))
    small = fxcompress.apply(models.captured("mamba2"), [p])
    sizes = {key: kept.shape for key, kept in small.steps[0].keep.items()}
    assert all(len(shape) == 2 and shape[0] == 3 for shape in sizes.values())
    assert len(set(sizes.values())) > 1


def test_a_result_with_sizes_of_its_own_in_each_layer_is_saved_and_loaded(tmp_path):
    values = scores_by_layer("nemotron_h", "ffn_neuron")
    p = PruneFFN(ratio=0.25, scope="global", score=values)
    small = fxcompress.apply(models.captured("nemotron_h", torch.float32), [p])
    again = fxcompress.load(small.save_pretrained(tmp_path / "out"))
    ids = models.ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, small(ids).logits)


def test_named_scores_are_compared_with_the_mean_of_their_group():
    """Or else a layer whose weights are all larger would lose nothing."""
    model = models.tiny("llama")
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(model.model.layers[0].mlp, name).weight.mul_(100)
    small = fxcompress.apply(model, [PruneFFN(ratio=0.25, scope="global")])
    assert {len(kept) for kept in small.steps[0].keep.values()} - {80}
    assert "model.layers.0.mlp.gate_proj.weight[0]" in small.steps[0].keep


def test_counts_are_multiples_of_round_to():
    p = PruneFFN(ratio=0.4, scope="global", round_to=16, score=scores_by_layer("llama", "ffn_neuron"))
    small = fxcompress.apply(models.captured("llama"), [p])
    assert all(len(kept) % 16 == 0 for kept in small.steps[0].keep.values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PruneFFN(size=40, scope="global"), "say how much by ratio="),
        (lambda: PruneFFN(ratio=0.5, scope="model"), "there are layer and global"),
    ],
)
def test_a_contradictory_scope_is_refused_when_the_pass_is_made(make, said):
    with pytest.raises(CompressError, match=said):
        make()


def test_too_little_to_remove_anything_is_refused():
    with pytest.raises(CompressError, match="the nearest ratio is"):
        fxcompress.apply(models.captured("mamba2"), [PruneSSMHeads(ratio=0.01, scope="global")])
