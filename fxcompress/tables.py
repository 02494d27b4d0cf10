"""Embedding and head: the tensors that have a row for every token, tied or not."""

from __future__ import annotations

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Axis, leaves
from fxcompress.program import Program


def tables(program: Program) -> set[str]:
    """Names of the tensors that token ids address, and of those that logits over as many tokens come from."""
    groups = program.get(AxisMap).groups
    embeddings = [group for group in groups if "vocabulary" in group.roles]
    heads = [g for g in groups for embedding in embeddings if is_head(g, embedding, program)]
    return {slot.name for group in [*embeddings, *heads] for slot in group.slots}


def is_head(group: Group, embedding: Group, program: Program) -> bool:
    """Logits of a language model are over the tokens that it takes; what other outputs mean is not known."""
    return program.origin.config is not None and group.size == embedding.size and group.axis in logits_axes(program)


def logits_axes(program: Program) -> set[Axis]:
    """The axes of the last dim of the output called logits."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    names = program.out_spec.context if isinstance(program.out_spec.context, list) else []
    dims = program.get(AxisMap).dims
    found = [dims[node] for name, node in zip(names, output.args[0], strict=False) if name == "logits"]
    return {axis for logits in found for axis in leaves(logits[-1])}
