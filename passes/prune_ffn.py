"""Remove FFN neurons: rows of the first projection (and of the gate), columns of the second.

h = act(G x) * (U x);  y = D h       ->       the same with the kept rows of G and U and the kept columns of D
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneFFN(PruneAxes):
    """Cut the hidden width of every feed-forward network; ``size`` is the width that is left in each."""

    role: str | None = field(default="ffn_neuron", init=False)
