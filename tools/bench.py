"""Time and memory of capture and analysis, as a Markdown table:

    .venv/bin/python tools/bench.py

The 8B hybrid is on ``meta``: its weights take no memory. The transformer is analysed by Torch-Pruning's dependency
graph in the same run, when that lies in .venv/peers; with eager attention, since its walk does not end on fused
grouped-query attention.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fxcompress
from fxcompress.axes import AxisMap

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60


def hybrid_8b() -> torch.nn.Module:
    """The published 52-layer configuration: 24 Mamba-2, 24 FFN and 4 attention layers."""
    config = AutoConfig.from_pretrained(ROOT / "tests" / "recipes" / "configs" / "nemotron-h-8b.json")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def transformer(layers: int) -> torch.nn.Module:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def ours(name: str, model: torch.nn.Module) -> str:
    start = time.perf_counter()
    program = fxcompress.capture(model)
    captured = time.perf_counter()
    groups = program.get(AxisMap).groups
    analysed = time.perf_counter()
    nodes = len(program.graph.nodes)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    capture, analysis = captured - start, analysed - captured
    return (
        f"| {name} | fxcompress | {nodes} | {len(groups)} | {capture:.2f} | {analysis:.3f} |"
        f" {capture / nodes * 1000:.2f} + {analysis / nodes * 1000:.3f} | {memory:.2f} |"
    )


def torch_pruning(name: str, model: torch.nn.Module) -> str:
    """Build the dependency graph and enumerate its groups, for a minute at the most."""
    sys.path.append(str(ROOT / ".venv" / "peers"))
    try:
        import torch_pruning as tp
    except ImportError:
        return f"| {name} | Torch-Pruning | not installed | | | | | |"
    model.config.use_cache = False
    start = time.perf_counter()
    ids = torch.randint(0, 1024, (2, 16))
    graph = tp.DependencyGraph().build_dependency(model, ids, output_transform=lambda out: out.logits)
    built = time.perf_counter()
    found = 0
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT)
    try:
        for _ in graph.get_all_groups():
            found += 1
        spent = f"{time.perf_counter() - built:.3f}"
    except TimeoutError:
        spent = f"stopped after {LIMIT} s"
    finally:
        signal.alarm(0)
    return f"| {name} | Torch-Pruning | | {found} | {built - start:.2f} | {spent} | | |"


def _stop(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    ours("warm-up", transformer(1))
    print("| model | tool | nodes | groups | capture / build | all groups | per 1,000 nodes | peak RSS, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for layers in (4, 16):
        print(ours(f"transformer, {layers} layers", transformer(layers)))
        print(torch_pruning(f"transformer, {layers} layers", transformer(layers)))
    print(ours("hybrid 8B, 52 layers, on meta", hybrid_8b()))


if __name__ == "__main__":
    main()
