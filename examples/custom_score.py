"""Scores of one's own: a function of program and group, or tensors made beforehand.

A score is a tensor of the group's sizes, (outer axes, axis); the highest are kept. Here: Wanda's product of weight and
activation norms (Sun et al., 2023), summed over the outputs of each neuron, against plain magnitude.
"""

import torch
from rich import print
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import fxcompress
from fxcompress import Program
from fxcompress.axes import AxisMap, Group
from fxcompress.batches import batches_of
from fxcompress.gather import gather
from fxcompress.passes import PruneFFN
from fxcompress.sites import consumers
from fxcompress.statistics import Watch
from fxcompress.sums import aggregated

RATIO = 0.5
SAMPLES, LENGTH = 8, 32
TINY = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4)


def down_norms(program: Program, group: Group) -> Tensor:
    """Norm of each neuron's column in the projection that consumes it."""
    (name,) = [slot.name for slot in group.slots if slot.dim == 1]
    return program.state[name].detach().norm(dim=0)


def wanda(program: Program, ids: Tensor) -> dict[str, Tensor]:
    """Norm of the column times norm of the activation, for every FFN, from one sweep over the calibration data."""
    axes = program.get(AxisMap)
    neurons = [group for group in axes.groups if "ffn_neuron" in group.roles]
    watched = {}
    for group in neurons:
        ((node, dim),) = consumers(axes, group)
        watched[group.key] = Watch("tokens", (node.name,), dim)
    statistics = gather(program, watched.values(), batches_of(ids))
    activations = {key: aggregated(statistics[watch], "l2") for key, watch in watched.items()}
    return {group.key: down_norms(program, group) * activations[group.key] for group in neurons}


torch.manual_seed(0)
program = fxcompress.capture(LlamaForCausalLM(TINY))
ids = torch.randint(TINY.vocab_size, (SAMPLES, LENGTH))
dense = program(input_ids=ids).logits

results = {
    "function": fxcompress.apply(program, [PruneFFN(ratio=RATIO, score=down_norms)]),
    "tensors": fxcompress.apply(program, [PruneFFN(ratio=RATIO, score=wanda(program, ids))]),
    "magnitude": fxcompress.apply(program, [PruneFFN(ratio=RATIO)]),
}

print(results["tensors"].report)
for name, small in results.items():
    error = (small(input_ids=ids).logits - dense).norm() / dense.norm()
    print(f"{name}: the logits move by {error:.1%}")
