"""Remove neurons of routed experts, the same number from every expert; which ones may differ from expert to expert.

Where experts are gated, a neuron goes with its gate and its value. Shared experts are ordinary feed-forward networks:
``PruneFFN`` cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneExpertFFN(PruneAxes):
    """Cut the hidden width of routed experts; ``size`` counts the neurons of all experts of a layer together."""

    role: str | None = field(default="expert_neuron", init=False)
