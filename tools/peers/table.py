"""The comparison as data: who is asked what, what has no answer, and how answers are written in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """``environment``: whose Python runs it, empty for ours; ``variant``: which of a script's recipes."""

    title: str
    script: str
    environment: str = ""
    variant: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    models: tuple[str, ...]


COLUMNS = {
    "torch_pruning": Column("Torch-Pruning 1.6.1, head table", "torch_pruning", "torch_pruning"),
    "torch_pruning_plain": Column("Torch-Pruning 1.6.1, plain", "torch_pruning", "torch_pruning", "-plain"),
    "modelopt": Column("ModelOpt 0.47.0", "modelopt", "modelopt"),
    "llm_compressor": Column("llm-compressor 0.14.0.1", "llm_compressor", "llm_compressor"),
    "mergekit": Column("mergekit 0.1.5", "mergekit", "mergekit"),
    "kvpress": Column("kvpress 0.5.5", "kvpress", "kvpress"),
    "fxcompress": Column("fxcompress", "ours"),
}
ROWS = {
    "heads_ffn": Row("heads and FFN 50 %", ("llama", "qwen3")),
    "width": Row("width 50 %, tied embeddings", ("llama",)),
    "ssm_heads": Row("SSM heads 50 %", ("mamba2", "nemotron_h", "bamba")),
    "experts": Row("experts 50 %", ("qwen3_moe",)),
    "layer": Row("drop one layer", ("llama", "qwen3", "mamba2", "nemotron_h", "bamba", "falcon_h1")),
    "two_of_four": Row("2:4 by SparseGPT", ("llama", "qwen3", "qwen3_moe", "mamba2", "nemotron_h")),
    "kv": Row("KV cache 50 %", ("llama", "bamba", "nemotron_h")),
}

_MASKS = "masks weights and prunes experts"
_FILES = "copies layers from file to file"
_CACHE = "compresses the KV cache alone"
_WIDTHS = "groups widths; has no layers"
NO: dict[tuple[str, str], str] = {
    ("width", "modelopt"): "width needs Megatron",
    ("experts", "modelopt"): "experts need Megatron",
    ("layer", "modelopt"): "depth needs Megatron",
    **{(row, "llm_compressor"): _MASKS for row in ("heads_ffn", "width", "ssm_heads", "layer")},
    **{(row, "mergekit"): _FILES for row in ROWS if row != "layer"},
    **{(row, "kvpress"): _CACHE for row in ROWS if row != "kv"},
    **{("layer", name): _WIDTHS for name in ("torch_pruning", "torch_pruning_plain")},
    **{("two_of_four", name): "removes structure alone" for name in ("torch_pruning", "torch_pruning_plain")},
    **{("kv", name): "does not touch the cache" for name in ("torch_pruning", "torch_pruning_plain", "modelopt")},
    **{
        (row, "torch_pruning_plain"): "as with the table, which is about attention"
        for row in ("width", "ssm_heads", "experts")
    },
    ("kv", "llm_compressor"): "quantises the cache, keeps every token",
}
LATER = {("two_of_four", "fxcompress"), ("kv", "fxcompress")}


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a request and model, a column a peer; then why a peer has no such thing."""
    lines = ["| request | model | " + " | ".join(c.title for c in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row, about in ROWS.items():
        for model in about.models:
            cells = [_cell(results.get(f"{row}.{model}.{column}")) for column in COLUMNS]
            lines.append("| " + " | ".join([about.title, model, *cells]) + " |")
    return "\n".join(lines)


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    said = textwrap.shorten("; ".join(result["faults"]), 110, placeholder=" …").replace("|", "\\|")
    if result["outcome"] == "pass":
        return f"**pass**{_proof(result['figures'])}"
    return f"{result['outcome']}: {said}" if said else str(result["outcome"])


def _proof(figures: Mapping[str, Any]) -> str:
    """The figure that makes a pass one: the larger of the errors, or tokens kept, or the size of the file."""
    if "kept" in figures:
        return f", {max(figures['kept'])} of {figures['prompt']} tokens"
    if "two_of_four" in figures:
        return f", file {figures['file_size']:.2f} of dense"
    own = ", own loader" if figures["reloaded"]["with"] != "transformers" else ""
    return f", {max(figures['masked'], figures['reload']):.0e}{own}"
