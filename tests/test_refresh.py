"""Fake values are computed anew where something changed and nowhere else, and are those of the whole graph computed."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxcompress import Program, graph
from fxcompress.axes import AxisMap
from fxcompress.passes import PruneEmbedding, PruneFFN, PruneSSMHeads, RemoveLayers
from fxcompress.pipeline import Pipeline
from fxcompress.plan import Step
from fxcompress.rewrite import rewrite
from tests import models

PASSES = {
    "llama": [PruneFFN(ratio=0.25), PruneEmbedding(ratio=0.25), RemoveLayers(layers=(1,))],
    "nemotron_h": [PruneSSMHeads(ratio=0.5), RemoveLayers(layers=(0,)), PruneFFN(ratio=0.25)],
}


def values(program: Program) -> dict[str, list]:
    """What is known of every value: shapes with their symbols, and dtypes."""
    found = {node.name: graph.tensors(node.meta.get("val")) for node in program.graph.nodes if node.op != "output"}
    return {name: [(str(tuple(t.shape)), t.dtype, t.device) for t in each] for name, each in found.items()}


def computed(monkeypatch: pytest.MonkeyPatch) -> list[fx.Node]:
    """The calls that are computed from now on."""
    nodes: list[fx.Node] = []
    real = graph.FakeTensorProp.run_node

    def run_node(self, node):
        nodes.append(node)
        return real(self, node)

    monkeypatch.setattr(graph.FakeTensorProp, "run_node", run_node)
    return nodes


def inner_calls(nodes: list[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", PASSES)
def test_what_is_kept_is_what_would_be_computed(name):
    program = Pipeline(PASSES[name], verify=False).run(models.captured(name))
    kept = values(program)
    graph.refresh(program.module)
    assert kept == values(program)


@pytest.mark.parametrize("name", PASSES)
def test_the_values_of_a_capture_are_what_would_be_computed(name):
    program = models.captured(name, torch.float32).clone()
    captured = values(program)
    graph.refresh(program.module)
    assert captured == values(program)


def neurons(program: Program, layer: int) -> str:
    groups = program.get(AxisMap).groups
    return next(g.key for g in groups if "ffn_neuron" in g.roles and f"layers.{layer}." in g.key)


def test_other_layers_than_the_one_that_is_cut_keep_their_values(monkeypatch):
    program = models.captured("llama").clone()
    nodes = computed(monkeypatch)
    rewrite(program, Step("cut", {neurons(program, 1): torch.arange(60)}))
    paths = {graph.module_path(node) for node in inner_calls(nodes)}
    assert paths
    assert all(path.startswith("model.layers.1.mlp") for path in paths)


def test_a_permutation_computes_nothing_anew(monkeypatch):
    program = models.captured("llama").clone()
    nodes = computed(monkeypatch)
    rewrite(program, Step("permutation", {neurons(program, 1): torch.arange(80).flip(0)}))
    assert inner_calls(nodes) == []


def narrowed(program: Program) -> fx.Node:
    """A cast in the graph, edited to give another dtype than its value says."""
    cast = next(node for node in graph.calls(program.graph) if node.target is torch.ops.aten.to.dtype)
    cast.args = (cast.args[0], torch.float16)
    return cast


def test_a_call_that_was_given_other_arguments_is_computed():
    program = models.captured("llama").clone()
    cast = narrowed(program)
    program.changed()
    assert cast.meta["val"].dtype == torch.float16


def test_a_clone_of_a_graph_that_was_edited_since_does_not_trust_the_edit():
    edited = models.captured("llama").clone()
    name = narrowed(edited).name
    copy = edited.clone()
    copy.changed()
    (cast,) = [node for node in copy.graph.nodes if node.name == name]
    assert cast.meta["val"].dtype == torch.float16


def test_inputs_of_another_dtype_reach_all_that_is_made_of_them():
    program = models.captured("llama", torch.float32).in_float64()
    values = [t for node in graph.calls(program.graph) for t in graph.tensors(node.meta["val"])]
    assert {t.dtype for t in values if t.is_floating_point()} == {torch.float64}


def test_on_the_device_where_it_is_nothing_is_computed_anew(monkeypatch):
    nodes = computed(monkeypatch)
    models.captured("llama").on_device(torch.device("cpu"))
    assert inner_calls(nodes) == []
    moved = models.captured("llama").on_device(torch.device("meta"))
    values = [t for node in graph.calls(moved.graph) for t in graph.tensors(node.meta["val"])]
    assert {t.device.type for t in values} == {"meta"}
