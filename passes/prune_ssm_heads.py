"""Remove SSM heads of Mamba-2, the same number from every group; which ones may differ from group to group.

Heads of a group share B and C, so a group must stay a group (group-aware pruning, Minitron-SSM, section 3). A head
goes from z, x and dt of the input projection, the convolution, A, D, the bias of dt, the gated norm and the output
projection at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneSSMHeads(PruneAxes):
    """Cut SSM heads; ``size`` is the number of heads that is left in each layer, a multiple of its groups."""

    role: str | None = field(default="ssm_head", init=False)
