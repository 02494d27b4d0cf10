"""Remove channels of SSM heads (Mamba-2) or inner channels (Mamba-1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneSSMChannels(PruneAxes):
    """Cut SSM channels, the same number from every head; which ones may differ from head to head.

    ``size`` counts the channels of all heads of a layer together: heads x channels of a head.
    """

    role: str | None = field(default="ssm_channel", init=False)
