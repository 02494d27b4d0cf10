"""Configs that lack fields, contradict themselves or the weights, or ask for models that no memory holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.mishaps.files import CONFIG, WEIGHTS
from tests.mishaps.place import Mishap, Place

HUGE, LARGE = 10**12, 10**9


def fields(*missing: str, **values: Any) -> Callable[[Place], None]:
    """Change fields of the config, and leave some out."""

    def make(place: Place) -> None:
        before = json.loads((place.model / CONFIG).read_text())
        after = {name: value for name, value in (before | values).items() if name not in missing}
        (place.model / CONFIG).write_text(json.dumps(after))

    return make


def text(content: str) -> Callable[[Place], None]:
    return lambda place: (place.model / CONFIG).write_text(content) and None


def alone(**values: Any) -> Callable[[Place], None]:
    """The config without weights."""

    def make(place: Place) -> None:
        fields(**values)(place)
        (place.model / WEIGHTS).unlink()

    return make


def try_out(place: Place) -> object:
    return place.compress("--dry-run")


case = partial(Mishap, "configs")

MISHAPS = (
    case("no config", "holds no config.json", lambda p: (p.model / CONFIG).unlink()),
    case("a config that is no JSON", "config.json is not JSON", text("{")),
    case("a config that is a list", "is not a model's config", text("[]")),
    case("a config nested a million deep", "it is nested too deeply", text("[" * 10**6)),
    case("a config of 20 MB", "is larger than 16,777,216 bytes", text(" " * 20_000_000)),
    case("a field twice", "it has model_type twice", text('{"model_type": "llama", "model_type": "gpt2"}')),
    case("a config without a type", "it has no model_type", fields("model_type")),
    case("a type that nothing knows", "model_type 'lama' is unknown to transformers", fields(model_type="lama")),
    case(
        "a type with code of its own",
        "brings code of its own, which is never run",
        fields(model_type="mine", auto_map={}),
    ),
    case("a type that is no language model", "no causal language model of model_type 'vit'", fields(model_type="vit")),
    case("quantised weights", "the weights are quantised (gptq)", fields(quantization_config={"quant_method": "gptq"})),
    case("a field of another type", "config.json is refused by transformers", fields(hidden_size="many")),
    case("a field missing", "of another shape than the config says", fields("intermediate_size")),
    case("no count of layers", "missing from the weights", fields("num_hidden_layers")),
    case(
        "heads that do not divide",
        "hidden size (48) is not a multiple of the number of attention heads (7)",
        fields(num_attention_heads=7, head_dim=None),
    ),
    case(
        "heads that no group holds",
        "k_proj.weight is (16, 48), not (32, 48)",
        fields(num_key_value_heads=4, head_dim=8),
    ),
    case("other sizes than the weights", "down_proj.weight is (48, 80), not (48, 96)", fields(intermediate_size=96)),
    case("a size of nought", "model.embed_tokens.weight is (96, 48), not (96, 0)", fields(hidden_size=0)),
    case("a size below nought", "negative dimension -48", fields(hidden_size=-48)),
    case("no layers", "no ffn neuron in this model", fields(num_hidden_layers=0)),
    case("layers below nought", "no ffn neuron in this model", fields(num_hidden_layers=-1)),
    case("a vocabulary below nought", "negative dimension -96", fields(vocab_size=-96)),
    case("a billion wide, with weights", "of another shape than the config says", fields(hidden_size=6 * 10**8)),
    case("a trillion layers, with weights", "num_hidden_layers=1,000,000,000,000", fields(num_hidden_layers=HUGE)),
    case("a trillion layers, tried out", "num_hidden_layers=1,000,000,000,000", alone(num_hidden_layers=HUGE), try_out),
    case(
        "a trillion layers of listed kinds",
        "num_hidden_layers=1,000,000,000,000",
        alone(model_type="qwen3", num_hidden_layers=HUGE),
        try_out,
    ),
    case("a billion wide, tried out", "", alone(hidden_size=LARGE, num_attention_heads=4), try_out, ends="0"),
    case(
        "a billion neurons, tried out",
        "has 1,000,000,000 indices; a plan can have 33,554,432",
        alone(intermediate_size=LARGE),
        try_out,
    ),
    case("a trillion tokens, tried out", "", alone(vocab_size=HUGE), try_out, ends="0"),
    case(
        "a billion heads, tried out",
        "is not a multiple of the number of attention heads (1000000000)",
        alone(num_attention_heads=LARGE, num_key_value_heads=LARGE),
        try_out,
    ),
    case("a trillion positions, tried out", "", alone(max_position_embeddings=HUGE), try_out, ends="0"),
)
