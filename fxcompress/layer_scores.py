"""How much layers matter, alone or as runs of consecutive ones: high is kept.

cosine    block importance, 1 - cos of what goes in and what comes out (ShortGPT, arXiv 2403.03853, section 3)
loss      the loss of the model without them, its perplexity (Minitron, arXiv 2407.14679, section 2.2)
kl        KL divergence of the logits from the whole model's (Minitron-SSM, arXiv 2504.11409)
hidden    mean square by which the last hidden state moves (MiniPuzzle: Nemotron-H, arXiv 2504.03624, section 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from fxcompress import blocks
from fxcompress.program import Program
from fxcompress.statistics import Statistics, Watch

LayerScore: TypeAlias = Literal["cosine", "loss", "kl", "hidden"]
Window: TypeAlias = "tuple[str, ...]"  # the paths of modules that go together, in their order


def windows(layers: Sequence[str], length: int) -> list[Window]:
    """All runs of so many consecutive layers."""
    return [tuple(layers[i : i + length]) for i in range(len(layers) - length + 1)]


def watch_of(program: Program, window: Window, score: LayerScore) -> Watch:
    """What has to be observed to score a window."""
    if score != "cosine":
        return Watch("skip", window)
    first, last = (blocks.read_block(program, window[i]) for i in (0, -1))
    return Watch("cosine", (first.source.name, last.output.name))


def importance(program: Program, window: Window, score: LayerScore, statistics: Statistics) -> float:
    """What the model loses without the modules of a window."""
    found = statistics[watch_of(program, window, score)]
    if score == "cosine":
        return 1.0 - float(found["sum"] / found["count"])
    return float(found[score] / found["count"])
