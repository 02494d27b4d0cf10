"""The passes that every family is tried with, by what they cut. Magnitudes or random scores: no calibration."""

from __future__ import annotations

from fxcompress.passes import (
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneExpertFFN,
    PruneExperts,
    PruneFFN,
    PruneLatentRanks,
    PruneSSMChannels,
    PruneSSMGroups,
    PruneSSMHeads,
    PruneSSMState,
    RemoveLayers,
)
from fxcompress.pipeline import Pass

PASSES: dict[str, Pass] = {
    "FFN neurons": PruneFFN(ratio=0.25),
    "experts": PruneExperts(ratio=1 / 3),
    "expert neurons": PruneExpertFFN(ratio=0.25),
    "query heads": PruneAttentionHeads(ratio=1 / 3),
    "KV heads": PruneAttentionHeads(ratio=0.5, kv=True),
    "query and key channels": PruneAxes(role="qk_channel", ratio=0.25),
    "value channels": PruneAxes(role="v_channel", ratio=0.25),
    "latent ranks": PruneLatentRanks(ratio=0.25),
    "SSM heads": PruneSSMHeads(ratio=0.5),
    "SSM groups": PruneSSMGroups(ratio=1 / 3),
    "SSM channels": PruneSSMChannels(ratio=0.25),
    "SSM state": PruneSSMState(ratio=0.25),
    "residual width": PruneEmbedding(ratio=0.25),
    "layers": RemoveLayers(layers=(1,)),
}
