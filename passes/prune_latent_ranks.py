"""Remove ranks of low-rank projections: the latents of multi-head latent attention, the inner width of adapters.

W = B A     ->     the kept columns of B and rows of A, and of a norm between them
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneLatentRanks(PruneAxes):
    """Cut what stands between two projections with nothing but norms, scales and movement between."""

    role: str | None = field(default="latent_rank", init=False)
