"""What is written down of a pass: every group it considered, laws, costs before and after, and the decision itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fxcompress import verify
from fxcompress.cost import Figures
from fxcompress.plan import Step


@dataclass(frozen=True)
class Row:
    """What one group, module or matrix was asked to lose and what it lost; ``why`` says what kept it from it.

    loss: of a pruned matrix on calibration inputs, tr (W - W') H (W - W')ᵀ / tr W H Wᵀ.
    times: what was timed -> seconds by the dense kernel and by the sparse one.
    """

    key: str
    role: str
    of: int
    asked: float
    got: int
    step: int = 1
    why: str = ""
    loss: float | None = None
    times: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Record:
    """One pass as it went: options, asked and got, laws, costs before and after, and the decision itself."""

    name: str
    options: dict[str, Any]
    rows: tuple[Row, ...]
    laws: tuple[verify.Law, ...]
    before: Figures
    after: Figures
    step: Step

    def to_json(self) -> dict[str, Any]:
        """As a report has it."""
        return {
            "name": self.name,
            "options": self.options,
            "rows": [asdict(row) for row in self.rows],
            "laws": [asdict(law) | {"holds": law.holds} for law in self.laws],
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "step": self.step.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        rows = tuple(Row(**row) for row in data["rows"])
        laws = tuple(verify.Law(law["name"], law["error"], law["tolerance"], law["why"]) for law in data["laws"])
        before, after = (Figures(**data[when]) for when in ("before", "after"))
        return cls(data["name"], data["options"], rows, laws, before, after, Step.from_json(data["step"]))
