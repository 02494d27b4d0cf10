"""Remove routed experts: their weights, the router's rows and biases for them.

The router ranks what is left; a softmax over the experts runs over those that stay. Where experts are routed in groups
(DeepSeek-V3, section 2.1.2), every group loses the same number, and which ones may differ from group to group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.axes import AxisMap, Group
from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneExperts(PruneAxes):
    """Cut routed experts; ``size`` is the number left in each layer, at least as many as a token takes."""

    role: str | None = field(default="expert", init=False)

    def candidates(self, axes: AxisMap) -> list[Group]:
        """Experts within their routing groups; the groups themselves stay."""
        groups = super().candidates(axes)
        around = {outer for group in groups for outer in axes.outer[group.axis]}
        return [group for group in groups if group.axis not in around]
