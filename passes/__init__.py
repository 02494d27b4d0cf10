"""The passes, one a file. Each is a frozen dataclass whose fields are its hyperparameters."""

from fxcompress.passes.prune_attention_heads import PruneAttentionHeads
from fxcompress.passes.prune_axes import PruneAxes
from fxcompress.passes.prune_embedding import PruneEmbedding
from fxcompress.passes.prune_ffn import PruneFFN
from fxcompress.passes.prune_ssm_channels import PruneSSMChannels
from fxcompress.passes.prune_ssm_heads import PruneSSMHeads
from fxcompress.passes.remove_layers import RemoveLayers

__all__ = [
    "PruneAttentionHeads",
    "PruneAxes",
    "PruneEmbedding",
    "PruneFFN",
    "PruneSSMChannels",
    "PruneSSMHeads",
    "RemoveLayers",
]
