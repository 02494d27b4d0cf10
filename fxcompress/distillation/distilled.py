"""What a distillation gave: the student as it was given, and figures before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table

from fxcompress.distillation.estimate import Estimate
from fxcompress.distillation.evaluate import Scores


@dataclass(frozen=True)
class Distilled:
    """``student`` is of the kind that was given: a model of transformers, or else a ``CompressedModel``.

    losses: (step, mean loss since the one before). before, after, of_teacher: on the held-out text, None without one.
    notes: what the user should know, a sentence each.
    """

    student: Any
    estimate: Estimate
    losses: list[tuple[int, float]] = field(default_factory=list)
    before: Scores | None = None
    after: Scores | None = None
    of_teacher: Scores | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Without the student and without what was only expected."""
        scores = {"before": self.before, "after": self.after, "teacher": self.of_teacher}
        return {
            "held_out": {name: found.to_json() for name, found in scores.items() if found is not None},
            "losses": [list(entry) for entry in self.losses],
            "notes": list(self.notes),
        }

    def __rich__(self) -> Group:
        table = Table(title="On the held-out text", title_justify="left")
        for name in ("", "loss", "perplexity", "KL to the teacher", "same token"):
            table.add_column(name, justify="left" if not name else "right")
        for name, scores in (("before", self.before), ("after", self.after), ("teacher", self.of_teacher)):
            if scores is not None:
                table.add_row(name, f"{scores.loss:.4f}", f"{scores.perplexity:.3f}", *_of_teacher(scores))
        return Group(*([table] if table.row_count else []), *self.notes)


def _of_teacher(scores: Scores) -> tuple[str, str]:
    if scores.kl is None or scores.agreement is None:
        return "", ""
    return f"{scores.kl:.4f}", f"{100 * scores.agreement:.1f} %"
