"""Two slots are tied by ops, and the path between them names those ops and no others."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn

from fxcompress import CompressError, capture
from fxcompress.axes import AxisMap, Slot
from fxcompress.couplings import coupling_graph, why_tied
from tests import models, plain


def axes_of(module: nn.Module, *inputs: torch.Tensor) -> AxisMap:
    return capture(module.eval(), inputs).get(AxisMap)


@pytest.fixture(params=[*models.FAMILIES, "plain"])
def axes(request) -> AxisMap:
    if request.param == "plain":
        return axes_of(plain.Encoder(), torch.zeros(2, 9, dtype=torch.long))
    return models.captured(request.param).get(AxisMap)


def test_every_group_hangs_together(axes):
    """What the solver tied over the whole graph is what the ops tie one by one."""
    for group in axes.groups:
        couplings = coupling_graph(axes, group)
        assert {str(slot) for slot in group.slots} <= set(couplings)
        assert nx.is_connected(couplings), group.key


def test_parameters_of_a_group_are_those_of_its_slots_and_no_others(axes):
    for group in axes.groups:
        couplings = coupling_graph(axes, group)
        parameters = {name for name, facts in couplings.nodes(data=True) if facts["kind"] == "parameter"}
        assert parameters == {str(slot) for slot in group.slots}


def test_parameters_are_never_neighbours_an_op_stands_between(axes):
    kinds = nx.get_node_attributes(coupling_graph(axes), "kind")
    assert not [edge for edge in coupling_graph(axes).edges if {kinds[n] for n in edge} == {"parameter"}]


def test_the_path_of_a_gated_network_runs_through_gate_and_product():
    axes = models.captured("llama").get(AxisMap)
    mlp = "model.layers.0.mlp"
    assert why_tied(axes, Slot(f"{mlp}.gate_proj.weight", 0), Slot(f"{mlp}.down_proj.weight", 1)) == [
        f"{mlp}.gate_proj.weight[0]",
        f"linear ({mlp}.gate_proj)",
        "silu",
        "mul",
        f"linear ({mlp}.down_proj)",
        f"{mlp}.down_proj.weight[1]",
    ]


def test_heads_of_a_scan_are_tied_at_the_scan():
    axes = models.captured("mamba2").get(AxisMap)
    mixer = "backbone.layers.0.mixer"
    path = why_tied(axes, Slot(f"{mixer}.A_log", 0), Slot(f"{mixer}.dt_bias", 0))
    assert path[0] == f"{mixer}.A_log[0]"
    assert f"ssd_scan ({mixer})" in path


def test_tied_embeddings_are_one_parameter_with_a_path_of_no_detour():
    axes = models.captured("llama").get(AxisMap)
    path = why_tied(axes, Slot("model.norm.weight", 0), Slot("model.embed_tokens.weight", 1))
    assert path[1:-1] == ["mul (model.norm)", "linear (lm_head)"]


def test_an_edge_says_which_op_made_it():
    axes = models.captured("llama").get(AxisMap)
    couplings = coupling_graph(axes, axes["model.layers.0.mlp.gate_proj.weight[0]"])
    ((_, _, facts),) = couplings.edges("model.layers.0.mlp.gate_proj.weight[0]", data=True)
    assert facts["by"].endswith("(aten.linear)")


def test_slots_of_different_groups_are_not_tied():
    axes = models.captured("llama").get(AxisMap)
    with pytest.raises(CompressError, match="no group has both"):
        why_tied(axes, Slot("model.layers.0.mlp.up_proj.weight", 0), Slot("model.layers.1.mlp.up_proj.weight", 0))


class Loop(nn.Module):
    """x + W x: both dims of W are the residual width, and W x alone does not tie them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.w = nn.Linear(4, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return (h + self.w(h)).sum(-1)


def test_both_dims_of_a_square_weight_are_not_tied_by_its_own_product():
    path = why_tied(axes_of(Loop(), torch.zeros(2, 4)), Slot("w.weight", 0), Slot("w.weight", 1))
    assert path == ["w.weight[0]", "linear (w)", "add", "linear (first)", "linear (w)", "w.weight[1]"]


class Unknown(nn.Module):
    """An op without a rule between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.fft.fft(self.a(x)).real)


def test_an_op_without_a_rule_ties_nothing():
    axes = axes_of(Unknown(), torch.zeros(2, 4))
    with pytest.raises(CompressError, match="not tied"):
        why_tied(axes, Slot("a.weight", 0), Slot("b.weight", 1))
