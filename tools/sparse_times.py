"""Where sparse kernels are faster than dense ones on this machine: shapes, zeros and tokens, timed by turns.

    .venv/bin/python tools/sparse_times.py --json sparse-times-output/sparse_times.json

On the CPU compressed rows against dense float32, with dense bfloat16 beside; where there is CUDA, 2:4 against dense
bfloat16. A run that was stopped goes on with what is not yet in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tools/importance.py

from importance import write

from fxcompress.kernels import csr_linear, sparse24_linear
from fxcompress.kernels.csr_linear import reference as csr
from fxcompress.kernels.sparse24_linear import semi_structured
from fxcompress.timing import by_turns

SHAPES = ((576, 576), (1536, 576), (2048, 2048), (4096, 4096))  # outputs, columns
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
TOKENS = (1, 16, 64, 512)
SHAPES_24 = ((4096, 4096), (11008, 4096), (4096, 11008))
TOKENS_24 = (1, 16, 64, 512, 4096)
SECONDS = 1.0  # for a cell, but for the slowest
CPU = torch.device("cpu")

Works = dict[str, Callable[[], Tensor]]


def cells() -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, float]]]]:
    """(key, what it is of, how it is measured) for all that this machine can time."""
    for outputs, columns in SHAPES:
        for sparsity in SPARSITIES:
            for tokens in TOKENS:
                of = {"device": "cpu", "shape": [outputs, columns], "sparsity": sparsity, "tokens": tokens}
                yield (
                    f"cpu {outputs}x{columns} {sparsity} {tokens}",
                    of,
                    partial(on_cpu, outputs, columns, sparsity, tokens),
                )
    for outputs, columns in SHAPES_24 if torch.cuda.is_available() else ():
        for tokens in TOKENS_24:
            of = {"device": torch.cuda.get_device_name(), "shape": [outputs, columns], "tokens": tokens}
            yield f"2:4 {outputs}x{columns} {tokens}", of, partial(on_cuda, outputs, columns, tokens)


def on_cpu(outputs: int, columns: int, sparsity: float, tokens: int) -> dict[str, float]:
    weight = torch.randn(outputs, columns) * (torch.rand(outputs, columns) >= sparsity)
    x, held = torch.randn(tokens, columns), csr.pack(weight)
    narrow = (x.bfloat16(), weight.bfloat16())
    works = {"dense": lambda: F.linear(x, weight), "csr": lambda: csr_linear(x, *held, None)}
    return measured(works | {"dense bfloat16": lambda: F.linear(*narrow)}, CPU)


def on_cuda(outputs: int, columns: int, tokens: int) -> dict[str, float]:
    groups = torch.randn(outputs, columns // 4, 4, device="cuda", dtype=torch.bfloat16)
    weight = groups.scatter(-1, torch.rand_like(groups).argsort(-1)[..., :2], 0).reshape(outputs, columns)
    x, held = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16), semi_structured.pack(weight)
    works = {"dense": lambda: F.linear(x, weight), "2:4": lambda: sparse24_linear(x, *held, None)}
    return measured(works, torch.device("cuda"))


def measured(works: Works, device: torch.device) -> dict[str, float]:
    """Median seconds of each, by turns; of three runs at the least."""
    once = sum(by_turns(list(works.values()), device, 1))
    runs = min(51, max(3, int(SECONDS / once)))
    return dict(zip(works, by_turns(list(works.values()), device, runs), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    told = json.loads(chosen.json.read_text()) if chosen.json.is_file() else {"cells": {}}
    told |= {
        "threads": chosen.threads,
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }
    for key, of, measure in cells():
        if key not in told["cells"]:
            told["cells"][key] = of | {"seconds": measure()}
            print(key, *(f"{name} {1e3 * s:.3f}" for name, s in told["cells"][key]["seconds"].items()), flush=True)
            write(chosen.json, told)


if __name__ == "__main__":
    main()
