"""Remove whole SSM groups of Mamba-2: a group's B and C with all of the heads that read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneSSMGroups(PruneAxes):
    """Cut SSM groups; ``size`` is the number of groups that is left in each layer."""

    role: str | None = field(default="ssm_group", init=False)
