"""Remove channels of convolutions that end within their block: made by one convolution, consumed by another.

Channels that a shortcut adds to are the residual width, which ``PruneEmbedding`` cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxcompress.passes.prune_axes import PruneAxes


@dataclass(frozen=True, kw_only=True)
class PruneConvChannels(PruneAxes):
    """Cut convolution channels, with their norms, gates and depthwise convolutions."""

    role: str | None = field(default="conv_channel", init=False)
