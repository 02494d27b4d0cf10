"""The originals of the recipes in small, and the recipes with them: every size by the ratio of its field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxcompress.pipeline import Pass
from fxcompress.recipe import Recipe, make_pass
from tests.recipes.published import PUBLISHED, RECIPES, Sizes, original_sizes

FIELDS = {"PruneFFN": "intermediate_size", "PruneEmbedding": "hidden_size", "PruneSSMHeads": "mamba_num_heads"}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}
_MAMBA2 = {"mamba_num_heads": 16, "mamba_head_dim": 4, "n_groups": 2, "ssm_state_size": 8}
_SMALL = {"vocab_size": 96, "dtype": "float32"}

# Where no layer is removed a few do; where some are, their numbers mean all of them.
SCALED: dict[str, dict[str, Any]] = {
    "minitron-width": {**_HEADS, "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 1},
    "minitron-depth": {**_HEADS, "hidden_size": 32, "intermediate_size": 112},
    "minitron-ssm": {
        **_HEADS,
        **_MAMBA2,
        "hidden_size": 64,
        "intermediate_size": 336,
        "hybrid_override_pattern": "M-M*-",
        "num_hidden_layers": 5,
    },
    "mini-puzzle": {**_HEADS, **_MAMBA2, "hidden_size": 32, "intermediate_size": 64},
}


def original(name: str) -> dict[str, Any]:
    """The config of the small original of a recipe."""
    return original_sizes(PUBLISHED[name].original) | _SMALL | SCALED[name]


def result(name: str) -> Sizes:
    """What becomes of its fields: the published change, in proportion."""
    changed = PUBLISHED[name].changed.items()
    cut = {key: in_proportion(name, key, size) for key, size in changed if key in FIELDS.values()}
    return original(name) | dict(changed) | cut


def recipe(name: str) -> Recipe:
    """The shipped recipe with its sizes in proportion."""
    shipped = Recipe.load(RECIPES / f"{name}.yaml")
    return replace(shipped, steps=tuple(_smaller(name, p) for p in shipped.steps))


def _smaller(name: str, p: Pass) -> Pass:
    if p.name not in FIELDS:
        return p
    return make_pass(p.name, {**p.options(), "size": in_proportion(name, FIELDS[p.name], p.options()["size"])})


def in_proportion(name: str, key: str, size: int) -> int:
    small, rest = divmod(size * original(name)[key], original_sizes(PUBLISHED[name].original)[key])
    assert rest == 0, f"{name}: {key}={size} is no whole number in small"
    return small
