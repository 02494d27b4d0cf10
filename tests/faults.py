"""Faults to plant in a rewrite, and what the laws say of each.

Each fault takes the place of one function while a pass is carried out: what a bug in the rules, in the unifier or in
the rewrite would do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from fxcompress import border, graph, keep, rewrite, rule, verify
from fxcompress.axes import AxisMap
from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneExpertFFN,
    PruneExperts,
    PruneFFN,
    PruneSSMHeads,
    PruneVocabulary,
    RemoveLayers,
)
from fxcompress.pipeline import Pass
from fxcompress.program import Program
from fxcompress.verify import Law


@dataclass(frozen=True)
class Fault:
    """``plant`` is a context in which the rewrite is wrong in one way."""

    name: str
    family: str
    passes: Pass
    plant: Callable[[], contextlib.AbstractContextManager]


def plant(fault: Fault, program: Program) -> list[Law]:
    """The laws' verdicts on a rewrite with the fault; an exception counts as the shapes law failing."""
    step, _ = fault.passes.decide(program, {})
    after = program.clone()
    with fault.plant():
        try:
            rewrite.rewrite(after, step)
            permuted = verify.permutation(program, step)
        except (RuntimeError, IndexError, ValueError) as error:
            return [Law("shapes", float("inf"), why=str(error).splitlines()[0])]
    laws = [_shapes(after), verify.count(program, after, step)]
    return [*laws, _masked(program, after, step), permuted]


def _shapes(after: Program) -> Law:
    try:
        return verify.shapes(after)
    except RuntimeError as error:
        return Law("shapes", float("inf"), why=str(error).splitlines()[0])


def _masked(before: Program, after: Program, step: Any) -> Law:
    try:
        return verify.prune_equals_mask(before, after, step)
    except RuntimeError as error:
        return Law("prune equals mask", float("inf"), why=str(error).splitlines()[0])


@contextlib.contextmanager
def _sliced_wrongly(change: Callable) -> Iterator[None]:
    """Slice tensors by ``change(name, dim, indices)`` instead of the indices."""
    names: dict[int, str] = {}
    true_cut, true_sliced, true_indices = rewrite.cut, rewrite.sliced, keep.kept_indices

    def cut(program: Program, axes: AxisMap, chosen: Any) -> None:
        names.update({id(t): n for n, t in program.state.items()})
        true_cut(program, axes, chosen)

    def sliced(tensor: torch.Tensor, dims: Any, chosen: Any, outer: Any) -> torch.Tensor:
        name, at = names.get(id(tensor), ""), iter(range(len(dims)))

        def indices(dim: Any, *rest: Any) -> torch.Tensor:
            position = next(i for i in at if keep.is_cut(dims[i], chosen))
            return change(name, position, true_indices(dim, *rest))

        with patch.object(keep, "kept_indices", indices):
            return true_sliced(tensor, dims, chosen, outer)

    with patch.object(rewrite, "cut", cut), patch.object(rewrite, "sliced", sliced):
        yield


def _slot(ending: str, change: Callable[[torch.Tensor], torch.Tensor], dim: int = 0) -> Callable:
    """Change the indices of one slot, named by the end of the tensor's name."""
    return lambda: _sliced_wrongly(lambda name, d, i: change(i) if name.endswith(ending) and d == dim else i)


def _shift(indices: torch.Tensor) -> torch.Tensor:
    """One index off: the last kept one goes, the one before the first comes in."""
    return (indices - 1).clamp(min=0)


def _other_head(indices: torch.Tensor) -> torch.Tensor:
    """Of two KV heads of 8 channels, the one that was to go."""
    return (indices + 8) % 16


def _rolled(indices: torch.Tensor) -> torch.Tensor:
    return indices.roll(1)


def _tail_rolled(indices: torch.Tensor, tail: int) -> torch.Tensor:
    return torch.cat([indices[:-tail], indices[-tail:].roll(1)])


@contextlib.contextmanager
def _without_resize(*ops: str) -> Iterator[None]:
    """Size arguments of some ops stay as they were."""
    stale = {
        op: rule.Rule(r.infer, None, r.einop, r.flops, r.cache, r.context)
        for op, r in rule.RULES.items()
        if str(op) in ops
    }
    assert len(stale) == len(ops)
    with patch.dict(rule.RULES, stale):
        yield


@contextlib.contextmanager
def _resized(op: str, change: Callable[[dict], dict]) -> Iterator[None]:
    """The rule of one op gives other sizes."""
    target = next(o for o in rule.RULES if str(o) == op)
    true = rule.RULES[target]
    wrong = rule.Rule(
        true.infer, lambda s: change(dict(true.resize(s))), true.einop, true.flops, true.cache, true.context
    )
    with patch.dict(rule.RULES, {target: wrong}):
        yield


def _off_by_one(arguments: dict) -> dict:
    """The first two parts of a split exchange one index."""
    first, second, *rest = arguments["split_sizes"]
    return {"split_sizes": [first - 1, second + 1, *rest]}


@contextlib.contextmanager
def _after_rewrite(change: Callable[[Program], None]) -> Iterator[None]:
    """Change the program once it was rewritten."""
    true = rewrite.rewrite

    def wrong(program: Program, step: Any) -> None:
        true(program, step)
        change(program)

    with patch.object(rewrite, "rewrite", wrong):
        yield


@contextlib.contextmanager
def _other_experts_neurons() -> Iterator[None]:
    """Each expert keeps the neurons that were chosen for the one before it."""
    true = keep._table
    with patch.object(keep, "_table", lambda *given: true(*given).roll(1, 0)):
        yield


@contextlib.contextmanager
def _numbered_one_off() -> Iterator[None]:
    """A token of the result is taken for its neighbour."""
    true = border._positions
    with patch.object(border, "_positions", lambda kept, v: (true(kept, v) + 1) % len(kept)):
        yield


def _stale_scale(program: Program) -> None:
    """Attention divides by the root of a size that it no longer has."""
    for node in graph.calls(program.graph):
        if "attention" in str(node.target):
            width = node.args[0].meta["val"].shape[-1]
            node.update_arg(4, float(width) ** -0.5)
    program.module.recompile()


def _untie(program: Program) -> None:
    """The head gets a copy of the embedding: one tensor becomes two."""
    reads = [n for n in graph.states(program.graph) if n.target == "model.embed_tokens.weight"]
    program.set_state("head_copy", torch.nn.Parameter(program.state["model.embed_tokens.weight"].detach().clone()))
    head = next(user for n in reads for user in n.users if "linear" in str(user.target))
    with program.graph.inserting_before(head):
        copy = program.graph.get_attr("head_copy")
    copy.meta = dict(reads[0].meta)
    head.update_arg(1, copy)
    program.module.recompile()


def _skip_another(program: Program) -> None:
    """A block is removed, and the one after it too."""
    from fxcompress import blocks

    blocks.skip(program, "model.layers.2")
    program.changed()


HEADS = PruneSSMHeads(size=6, score="random")
QUERY = PruneAttentionHeads(size=4, score="random")
KV = PruneAttentionHeads(size=1, kv=True, score="random")
FFN = PruneFFN(size=60, score="random")
WIDTH = PruneEmbedding(size=36, score="random")
EXPERTS = PruneExperts(size=3, score="random")
EXPERTS_OF_GROUPS = PruneExperts(size=4, score="random")
NEURONS = PruneExpertFFN(ratio=0.5, score="random")
TOKENS = PruneVocabulary(tokens=(0, 1, 2, *range(5, 96, 4)))
NARROW = PruneAxes(role="qk_channel", size=3, score="random")

FAULTS = (
    Fault("wrong KV head: keys of the one that was removed", "llama", KV, _slot("k_proj.weight", _other_head)),
    Fault("wrong KV head: values of the one that was removed", "qwen3", KV, _slot("v_proj.weight", _other_head)),
    Fault("query heads of another group", "llama", QUERY, _slot("q_proj.weight", lambda i: i.flip(0))),
    Fault("a keep that crosses a group: dt", "mamba2", HEADS, _slot("in_proj.weight", lambda i: _tail_rolled(i, 6))),
    Fault("a keep that crosses a group: A", "nemotron_h", HEADS, _slot("A_log", _rolled)),
    Fault("a keep that crosses a group: D", "mamba2", HEADS, _slot(".D", _rolled)),
    Fault("the gated norm in another order", "mamba2", HEADS, _slot("norm.weight", _rolled)),
    Fault("the convolution one channel off", "mamba2", HEADS, _slot("conv1d.weight", _shift)),
    Fault(
        "one slot left uncut: down projection", "llama", FFN, _slot("down_proj.weight", lambda i: torch.arange(80), 1)
    ),
    Fault("one slot left uncut: convolution bias", "mamba2", HEADS, _slot("conv1d.bias", lambda i: torch.arange(138))),
    Fault("gate and up cut differently", "llama", FFN, _slot("up_proj.weight", _shift)),
    Fault("down projection cut differently", "nemotron_h", FFN, _slot("down_proj.weight", _shift, 1)),
    Fault("output projection in another order", "qwen3", QUERY, _slot("o_proj.weight", lambda i: i.roll(8), 1)),
    Fault("a norm of the residual cut differently", "llama", WIDTH, _slot("input_layernorm.weight", _shift)),
    Fault("the embedding cut differently", "mamba", WIDTH, _slot("embeddings.weight", _shift, 1)),
    Fault("a router that counts its experts in another order", "qwen3_moe", EXPERTS, _slot("gate.weight", _rolled)),
    Fault("a router's bias for other experts", "deepseek_v3", EXPERTS_OF_GROUPS, _slot("correction_bias", _shift)),
    Fault("an expert with the neurons of another", "mixtral", NEURONS, _other_experts_neurons),
    Fault("the rows of other tokens", "llama", TOKENS, _slot("embed_tokens.weight", _shift)),
    Fault("a token taken for another", "llama", TOKENS, _numbered_one_off),
    Fault("a stale scale: attention", "llama", NARROW, lambda: _after_rewrite(_stale_scale)),
    Fault("stale sizes in views", "llama", NARROW, lambda: _without_resize("aten.reshape.default")),
    Fault("stale sizes in splits", "mamba2", HEADS, lambda: _without_resize("aten.split_with_sizes.default")),
    Fault("an off-by-one in a split", "mamba2", HEADS, lambda: _resized("aten.split_with_sizes.default", _off_by_one)),
    Fault("a slice that keeps its old bounds", "llama", NARROW, lambda: _without_resize("aten.slice.Tensor")),
    Fault("a broken tie: the head gets a copy", "llama", WIDTH, lambda: _after_rewrite(_untie)),
    Fault("one layer too many removed", "llama", RemoveLayers(layers=(1,)), lambda: _after_rewrite(_skip_another)),
)
