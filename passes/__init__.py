"""The passes, one a file. Each is a frozen dataclass whose fields are its hyperparameters."""

from fxcompress.passes.prune_attention_heads import PruneAttentionHeads
from fxcompress.passes.prune_axes import PruneAxes
from fxcompress.passes.prune_conv_channels import PruneConvChannels
from fxcompress.passes.prune_embedding import PruneEmbedding
from fxcompress.passes.prune_expert_ffn import PruneExpertFFN
from fxcompress.passes.prune_experts import PruneExperts
from fxcompress.passes.prune_ffn import PruneFFN
from fxcompress.passes.prune_latent_ranks import PruneLatentRanks
from fxcompress.passes.prune_ssm_channels import PruneSSMChannels
from fxcompress.passes.prune_ssm_groups import PruneSSMGroups
from fxcompress.passes.prune_ssm_heads import PruneSSMHeads
from fxcompress.passes.prune_ssm_state import PruneSSMState
from fxcompress.passes.prune_vocabulary import PruneVocabulary
from fxcompress.passes.prune_weights import PruneWeights
from fxcompress.passes.remove_layers import RemoveLayers
from fxcompress.passes.use_sparse_kernels import UseSparseKernels

__all__ = [
    "PruneAttentionHeads",
    "PruneAxes",
    "PruneConvChannels",
    "PruneEmbedding",
    "PruneExpertFFN",
    "PruneExperts",
    "PruneFFN",
    "PruneLatentRanks",
    "PruneSSMChannels",
    "PruneSSMGroups",
    "PruneSSMHeads",
    "PruneSSMState",
    "PruneVocabulary",
    "PruneWeights",
    "RemoveLayers",
    "UseSparseKernels",
]
