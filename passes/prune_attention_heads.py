"""Remove attention heads: query heads within each KV group, or whole KV groups.

With (g r) query heads on g KV heads, ``kv=False`` takes the same number of query heads out of every group (which ones
may differ) and leaves the KV cache as it is; ``kv=True`` takes whole groups, KV heads and their query heads together.
Where every query head has its own KV head the two are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.axes import AxisMap, Group
from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneAttentionHeads(PruneAxes):
    """Cut attention heads; ``size`` is the number left in each layer: of query heads, or of KV heads with ``kv``."""

    role: str | None = field(default=None, init=False)
    kv: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", "kv_head" if self.kv else "query_head")
        super().__post_init__()

    def candidates(self, axes: AxisMap) -> list[Group]:
        groups = super().candidates(axes)
        if self.kv:
            return groups
        shared = {outer for group in groups for outer in axes.outer[group.axis]}
        return groups + [g for g in axes.groups if "kv_head" in g.roles and g.axis not in shared]
