"""What is published of the recipes' originals and results, and how many parameters such sizes have.

The formulas are written down from the papers' layers and know nothing of the library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
CONFIGS = Path(__file__).parent / "configs"
Sizes = Mapping[str, Any]  # fields of a config


@dataclass(frozen=True)
class Published:
    """A result: the fields in which its config differs from the original's, and its parameters, as they are printed."""

    original: str
    changed: dict[str, Any]
    billions: str
    without_embeddings: str | None = None  # neither embedding nor head
    layers: tuple[int, ...] = field(default=())  # of the original that stay; empty for all

    @property
    def sizes(self) -> Sizes:
        return original_sizes(self.original) | self.changed


PATTERN_47B = "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-"

PUBLISHED = {
    "minitron-width": Published("llama-3.1-8b", {"hidden_size": 3072, "intermediate_size": 9216}, "4.5", "3.7"),
    "minitron-depth": Published("llama-3.1-8b", {"num_hidden_layers": 16}, "4.5", "3.5", (*range(15), 31)),
    "minitron-ssm": Published(
        "nemotron-h-8b",
        {"hidden_size": 3072, "intermediate_size": 12288, "mamba_num_heads": 112},
        "4.49",
        "3.68",
    ),
    "mini-puzzle": Published(
        "nemotron-h-56b",
        {"intermediate_size": 30720, "hybrid_override_pattern": PATTERN_47B, "num_hidden_layers": len(PATTERN_47B)},
        "46.8",
    ),
}
ORIGINALS = {"llama-3.1-8b": "8.03", "nemotron-h-8b": "8.10", "nemotron-h-56b": "56.3"}


def original_sizes(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def body(sizes: Sizes) -> int:
    """Parameters of a model but for its embedding and its head."""
    per_layer = _hybrid(sizes) if sizes["model_type"] == "nemotron_h" else _transformer(sizes)
    return sum(per_layer) + sizes["hidden_size"]


def total(sizes: Sizes) -> int:
    return body(sizes) + 2 * sizes["vocab_size"] * sizes["hidden_size"]


def rounded(parameters: int, like: str) -> str:
    """Billions, to as many places as the printed figure has."""
    return f"{parameters / 1e9:.{len(like.partition('.')[2])}f}"


def _transformer(sizes: Sizes) -> list[int]:
    """A layer: two norms, attention, and a gated FFN."""
    width = sizes["hidden_size"]
    return [2 * width + _attention(sizes) + 3 * width * sizes["intermediate_size"]] * sizes["num_hidden_layers"]


def _hybrid(sizes: Sizes) -> list[int]:
    """A layer: a norm, and one of Mamba-2, an FFN without a gate, and attention."""
    width = sizes["hidden_size"]
    of = {"M": _mamba2(sizes), "-": 2 * width * sizes["intermediate_size"], "*": _attention(sizes)}
    return [width + of[letter] for letter in sizes["hybrid_override_pattern"]]


def _attention(sizes: Sizes) -> int:
    heads = sizes["num_attention_heads"] + sizes["num_key_value_heads"]
    return 2 * sizes["hidden_size"] * sizes["head_dim"] * heads


def _mamba2(sizes: Sizes) -> int:
    """Projection to z, x, B, C and dt; convolution of x, B, C and its bias; A, D, the bias of dt; norm; output."""
    heads, width = sizes["mamba_num_heads"], sizes["hidden_size"]
    inner, state = heads * sizes["mamba_head_dim"], sizes["n_groups"] * sizes["ssm_state_size"]
    projections = width * (2 * inner + 2 * state + heads) + inner * width
    return projections + (inner + 2 * state) * (sizes["conv_kernel"] + 1) + 3 * heads + inner
