"""Remove tokens from the vocabulary: rows of the embedding and of the head, tied or not.

The result takes and gives token ids in a new numbering: the kept tokens, counted in their old order. Its program says
which is which (``program.numbering["input_ids"]``), and saving rewrites the tokenizer and the config by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fxcompress.axes import AxisMap, Group
from fxcompress.axis import Axis, leaves
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass, Row
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.score import Statistics
from fxcompress.token_fields import present_config, renumber_config
from fxcompress.vocabulary import closed, new_ids, used_tokens


@dataclass(frozen=True, kw_only=True)
class PruneVocabulary(Pass):
    """Keep the tokens of the given ids, all others go.

    tokens: ids in the model's own numbering; they must hold every special token of the config (bos, eos, pad, ...), and
    for a tokenizer to work with them they must be closed: ``PruneVocabulary.used_by`` takes care of both.
    """

    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kept = tuple(sorted({int(token) for token in self.tokens}))
        if not kept or kept[0] < 0:
            raise CompressError("PruneVocabulary needs tokens=, the ids of the tokens that stay, none below 0")
        object.__setattr__(self, "tokens", kept)

    @classmethod
    def used_by(cls, tokenizer: Any, texts: Iterable[str]) -> PruneVocabulary:
        """Keep what a tokenizer needs to encode these texts as before: the tokens in them, those that they are merged
        from, the alphabet and the special tokens."""
        return cls(tokens=tuple(closed(tokenizer, used_tokens(tokenizer, texts))))

    def check(self, program: Program) -> None:
        size = self._groups(program)[0].size
        if self.tokens[-1] >= size:
            raise CompressError(f"PruneVocabulary: token {self.tokens[-1]} is none of the {size} of this model")
        if program.origin.config is not None:
            renumber_config(present_config(program), new_ids(self.tokens))

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        groups = self._groups(program)
        kept = torch.tensor(self.tokens)
        gone = groups[0].size - len(kept)
        rows = [Row(g.key, "vocabulary", g.size, gone, gone) for g in groups]
        return Step(self.name, {g.key: kept for g in groups} if gone else {}), rows

    def _groups(self, program: Program) -> list[Group]:
        """What token ids address and, where it is not tied to that, the dim of the logits."""
        axes = program.get(AxisMap)
        found = [g for g in axes.groups if "vocabulary" in g.roles]
        for group in found:
            if not group.border:
                raise CompressError(f"PruneVocabulary: {group.key} is pinned, {group.pinned[0]}")
        if not found:
            raise CompressError("PruneVocabulary: no embedding in this model is addressed by the values of an input")
        heads = [g for g in axes.groups if g.border and g not in found and self._is_head(g, found[0], program)]
        return [*found, *heads]

    @staticmethod
    def _is_head(group: Group, embedding: Group, program: Program) -> bool:
        """Logits of a language model are over the tokens that it takes; what other outputs mean is not known."""
        return program.origin.config is not None and group.size == embedding.size and group.axis in logits_axes(program)


def logits_axes(program: Program) -> set[Axis]:
    """The axes of the last dim of the output called logits."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    names = program.out_spec.context if isinstance(program.out_spec.context, list) else []
    dims = program.get(AxisMap).dims
    found = [dims[node] for name, node in zip(names, output.args[0], strict=False) if name == "logits"]
    return {axis for logits in found for axis in leaves(logits[-1])}
