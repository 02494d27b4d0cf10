"""Remove channels of the residual stream: the embedding width, everywhere it reaches."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneEmbedding(PruneAxes):
    """Cut the residual width of the whole model. Norms average over the channels that stay."""

    role: str | None = field(default="residual", init=False)
