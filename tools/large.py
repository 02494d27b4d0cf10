"""Models larger than the memory they are compressed in: peak memory and time, next to loading them.

    .venv/bin/python tools/large.py transformer-3b hybrid-8b --json large-output/large.json

Checkpoints of random weights are written to disk, compressed from directory to directory with every proof, and removed.
Each measurement is a process of its own; its peak is what the system counted (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress.export.pieces import Pieces
from fxcompress.export.shards import pack, read_size, write_index, write_shard

PUBLISHED = Path(__file__).resolve().parents[1] / "tests" / "recipes" / "configs"
SHAPES: dict[str, dict[str, Any]] = {
    "transformer-3b": {
        "model_type": "llama",
        **{"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
        **{"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    },
    "hybrid-8b": json.loads((PUBLISHED / "nemotron-h-8b.json").read_text()),
    "tiny": {
        "model_type": "llama",
        **{"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    },
}
RECIPES: dict[str, list[str]] = {
    "transformer-3b": ["PruneFFN(ratio=0.25)", "PruneAttentionHeads(ratio=0.3334)", "RemoveLayers(layers=(-3,))"],
    "hybrid-8b": ["PruneSSMHeads(size=112)", "PruneFFN(ratio=0.25)", "PruneEmbedding(size=3072)"],
    "tiny": ["PruneFFN(ratio=0.25)"],
}

COMPRESS = """
import sys
from fxcompress.cli import main
sys.argv[1:] = ["compress", {model!r}, "-o", {out!r}, "--max-shard-size", "2GB", *{passes!r}]
try:
    main()
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""
LOAD = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({model!r}, dtype="auto")
print(sum(float(p.detach().float().abs().mean()) for p in model.parameters()))  # mapped files count when they are read
print(open("/proc/self/status").read(), file=sys.stderr)
"""


def write_checkpoint(name: str, folder: Path) -> int:
    """Random bfloat16 weights at 1/sqrt(fan in) under the names of a checkpoint; returns their bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir(parents=True)
    pieces, state = Pieces(model), model.state_dict()
    shards = pack(pieces.tensors, read_size("5GB"))
    for shard in shards:
        write_shard(folder, shard, pieces.values(list(shard.tensors), lambda tensor: _random(tensor, state[tensor])))
    write_index(folder, shards)
    config.dtype, config.architectures = torch.bfloat16, [type(model).__name__]
    config.save_pretrained(folder)
    return sum(shard.bytes for shard in shards)


def _random(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(hash_of(name))
    if like.dim() < 2:
        values = torch.rand(like.shape, generator=generator) * 0.2 + 0.9
        return (values if name.endswith("weight") else values - 1).to(like.dtype)
    scale = like[0].numel() ** -0.5
    return torch.cat([_rows(like, n, scale, generator) for n in _pieces(len(like))])


def _rows(like: Tensor, count: int, scale: float, generator: torch.Generator) -> Tensor:
    return (torch.randn((count, *like.shape[1:]), generator=generator) * scale).to(like.dtype)


def _pieces(rows: int, most: int = 4096) -> Iterator[int]:
    yield from [most] * (rows // most)
    if rows % most:
        yield rows % most


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[-7:], "little")


def measure(program: str) -> dict[str, Any]:
    """Run a program and read off what it took: seconds, and peak memory in bytes."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    took = time.monotonic() - started
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    said = [line for line in done.stderr.splitlines() if re.search(r"error|^\S.*: \d+\.\d s$", line)]
    return {"rc": done.returncode, "seconds": round(took), "peak": int(peak[1]) * 1024 if peak else 0, "said": said}


def run(name: str, scratch: Path) -> dict[str, Any]:
    model, out = scratch / name, scratch / f"{name}-small"
    for folder in (model, out):
        shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {"model": name, "bytes": write_checkpoint(name, model), "passes": RECIPES[name]}
    print(name, f"{row['bytes'] / 1e9:.1f} GB written", flush=True)
    passes = [word for text in RECIPES[name] for word in ("--pass", text)]
    row["compress"] = measure(COMPRESS.format(model=str(model), out=str(out), passes=passes))
    print(row["compress"], flush=True)
    row["load original"] = measure(LOAD.format(model=str(model)))
    row["load result"] = measure(LOAD.format(model=str(out)))
    row["result bytes"] = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    manifest = json.loads((out / "fxcompress.json").read_text()) if out.is_dir() else {}
    row["loads with"] = manifest.get("loads_with", "")
    row["reload error"] = manifest.get("report", {}).get("reload_error")
    laws = [law for entry in manifest.get("report", {}).get("passes", []) for law in entry["laws"]]
    row["laws"] = {law["name"]: max(o["error"] or 0 for o in laws if o["name"] == law["name"]) for law in laws}
    for folder in (model, out):
        shutil.rmtree(folder, ignore_errors=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--scratch", type=Path, default=Path("large-output"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.scratch.mkdir(exist_ok=True)
    rows = [run(name, options.scratch) for name in options.models]
    print(json.dumps(rows, indent=1))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
