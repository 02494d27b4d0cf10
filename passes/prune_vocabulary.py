"""Remove tokens from the vocabulary: rows of the embedding and of the head, tied or not.

The result takes and gives token ids in a new numbering: the kept tokens, counted in their old order. Its program says
which is which (``program.numbering["input_ids"]``), and saving rewrites the tokenizer and the config by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxcompress.axes import AxisMap, Group
from fxcompress.checkpoint import read_tokenizer
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.record import Row
from fxcompress.statistics import Statistics
from fxcompress.tables import is_head
from fxcompress.token_fields import present_config, present_generation_config, renumber_config, special_ids
from fxcompress.vocabulary import closed, new_ids, used_tokens


@dataclass(frozen=True, kw_only=True)
class PruneVocabulary(Pass):
    """Keep some tokens, all others go.

    tokens: the ids that stay, in the model's own numbering. They must hold every special token of the config (bos, eos,
    pad, ...), and for a tokenizer to work with them they must be closed, which ``PruneVocabulary.used_by`` sees to.
    corpus: or a text file (UTF-8), whose tokens stay with all that the tokenizer beside the model needs to give them.
    """

    tokens: tuple[int, ...] = ()
    corpus: str | None = None

    def __post_init__(self) -> None:
        kept = tuple(sorted({int(token) for token in self.tokens}))
        if bool(kept) == (self.corpus is not None) or (kept and kept[0] < 0):
            raise CompressError("PruneVocabulary needs tokens=, ids of which none is below 0, or corpus=, a text file")
        object.__setattr__(self, "tokens", kept)

    @classmethod
    def used_by(cls, tokenizer: Any, texts: Iterable[str]) -> PruneVocabulary:
        """Keep what a tokenizer needs to encode these texts as before: the tokens in them, those that they are merged
        from, the alphabet and the special tokens."""
        return cls(tokens=tuple(closed(tokenizer, used_tokens(tokenizer, texts))))

    def kept(self, program: Program) -> tuple[int, ...]:
        """The ids that stay, ascending."""
        if self.corpus is None:
            return self.tokens
        folder = getattr(program.origin.config, "_name_or_path", None)
        if not folder or not Path(folder).is_dir() or program.numbering:
            raise CompressError(
                "PruneVocabulary: corpus= needs the tokenizer that lies beside a model loaded from a directory;"
                " pass PruneVocabulary.used_by(tokenizer, texts) instead"
            )
        special = {token for values in self._configs(program) for token in special_ids(values)}
        return tuple(sorted({*_tokens_of(folder, self.corpus), *special}))

    @staticmethod
    def _configs(program: Program) -> list[dict[str, Any]]:
        """What names tokens beside the graph."""
        configs = [present_config(program), present_generation_config(program)]
        return [values for values in configs if values is not None]

    def check(self, program: Program) -> None:
        kept, size = self.kept(program), self._groups(program)[0].size
        if kept[-1] >= size:
            raise CompressError(f"PruneVocabulary: token {kept[-1]} is none of the {size} of this model")
        for values in self._configs(program):
            renumber_config(values, new_ids(kept))

    def decide(self, program: Program, statistics: Statistics) -> tuple[Step, list[Row]]:
        groups = self._groups(program)
        kept = torch.tensor(self.kept(program))
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
        if len(found) > 1:
            raise CompressError(
                f"PruneVocabulary: {found[0].key} and {found[1].key} are addressed by different inputs, or in parts:"
                " which of them the tokens are is not said"
            )
        if not found:
            raise CompressError("PruneVocabulary: no embedding in this model is addressed by the values of an input")
        heads = [g for g in axes.groups if g.border and g not in found and is_head(g, found[0], program)]
        return [*found, *heads]


@functools.lru_cache(4)
def _tokens_of(folder: str, corpus: str) -> list[int]:
    """What the tokenizer in a folder needs to encode a text file as before."""
    try:
        text = Path(corpus).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompressError(f"PruneVocabulary: the corpus {corpus} cannot be read: {error}") from error
    tokenizer = read_tokenizer(Path(folder))
    return closed(tokenizer, used_tokens(tokenizer, text.splitlines(keepends=True)))
