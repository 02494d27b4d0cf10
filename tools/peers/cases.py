"""What every peer is given and what it hands back: the same files, whoever wrote them.

    ORIGINAL/                  a tiny checkpoint, and probe.safetensors: token ids for calibration and for comparison
    OUT/memory.safetensors     the result as it was in memory: its logits on the probe, its tensors under "state."
    OUT/facts.json             what only that process could see, or the error that ended it
    OUT/saved/                 the result as the peer itself saves it
    OUT/reload.safetensors     the logits of what was saved, by ``reload.py``

Needs torch and transformers alone, in any version that a peer asks for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MIDDLE = 1  # the layer that is dropped
HALF = 0.5


def probe(original: Path) -> torch.Tensor:
    return load_file(original / "probe.safetensors")["probe"]


def calibration(original: Path) -> torch.Tensor:
    return load_file(original / "probe.safetensors")["calibration"]


def load(original: Path) -> Any:
    """The original as transformers gives it, in float32, without a cache: the way every recipe starts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    return model.eval()


def num_layers(state: dict[str, torch.Tensor]) -> int:
    """The layers that a state dict has tensors of."""
    return len({name.partition(".layers.")[2].partition(".")[0] for name in state if ".layers." in name})


def record(model: Any, original: Path, out: Path, **facts: Any) -> None:
    """Write down a result: first what it is in memory, then what its own ``save_pretrained`` makes of it."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters())
    write_facts(out, parameters=parameters, tied=tied, **facts)
    with torch.no_grad():
        logits = model(input_ids=probe(original)).logits
    write_memory(out, logits, model.state_dict())
    model.save_pretrained(out / "saved")


def write_memory(out: Path, logits: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    tensors = {f"state.{name}": t.detach().clone().contiguous() for name, t in state.items()}
    save_file({"logits": logits.detach().clone().contiguous(), **tensors}, out / "memory.safetensors")


def write_facts(out: Path, **facts: Any) -> None:
    file = out / "facts.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **facts}, indent=1) + "\n")


def main(work: Callable[[str, Path, Path], None]) -> None:
    """``python -m peers.NAME CASE ORIGINAL OUT``: run one case; whatever ends it is the result."""
    case, original, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        work(case, original, out)
    except Exception as error:
        write_facts(out, error=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        raise
