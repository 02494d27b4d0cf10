"""Remove state channels of SSMs: rows of B and C (Mamba-2), columns of A (Mamba), key channels (gated delta rule)."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneSSMState(PruneAxes):
    """Cut the state size, and with it what each sequence keeps for generation."""

    role: str | None = field(default="ssm_state", init=False)
