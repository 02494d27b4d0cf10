"""llm-compressor's pruning of one linear layer; runs in the peer's own environment.

    python weights_layer.py LAYER.safetensors OUT.safetensors sparsegpt|wanda SPARSITY STRUCTURE

LAYER: weight (m, n) and inputs (tokens, n). Prints seconds and bytes of the pruning alone, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tools/peak.py

from peak import measured


def main(layer: str, out: str, method: str, sparsity: str, structure: str) -> None:
    given = load_file(layer)
    module = torch.nn.Linear(*reversed(given["weight"].shape), bias=False)
    module.weight.data = given["weight"]
    n, m = map(int, structure.split(":"))
    if method == "wanda":
        scalars, _ = wanda_sparsify.accumulate_row_scalars(
            given["inputs"], module, wanda_sparsify.make_empty_row_scalars(module), 0
        )
        call = lambda: wanda_sparsify.sparsify_weight(module, {module: scalars}, float(sparsity), n, m)  # noqa: E731
    else:
        hessian, _ = sgpt_sparsify.accumulate_hessian(
            given["inputs"], module, sgpt_sparsify.make_empty_hessian(module), 0
        )
        del given["inputs"]
        call = lambda: sgpt_sparsify.sparsify_weight(  # noqa: E731
            module, {module: hessian}, float(sparsity), n, m, 128, 0.01, False
        )[1]
    with torch.no_grad():
        pruned, figures = measured(call)
    save_file({"weight": pruned.contiguous()}, out)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
