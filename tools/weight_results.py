"""Sections of docs/results.md about weight pruning, from what the tools that measure it wrote last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matrix import table

ROOT = Path(__file__).resolve().parents[1]


def weights() -> str:
    """What the last runs of tools/weights.py wrote, each with its model and number of samples."""
    files = sorted((ROOT / "weights-output").glob("*.json"))
    if not files:
        return "Run `.venv/bin/python tools/weights.py --json weights-output/weights.json` first."
    runs = sorted((json.loads(file.read_text()) for file in files), key=lambda told: -told["samples"])
    of_demo = [run for run in runs if run.get("model", _DEMO) == _DEMO]
    return (
        "`tools/weights.py`: perplexity after pruning in one shot, without training, all linear weights but the head."
        f" The linear weights of {_DEMO} lie on a 4-bit grid; of BoolQ it was judged on other passages than it was"
        " pruned by. The loss is the mean over matrices of tr (W − W') H (W − W')ᵀ / tr W H Wᵀ on their calibration"
        " inputs; seconds on one core.\n\n"
        + "\n\n".join(map(_one_run, [*of_demo, *(run for run in runs if run not in of_demo)]))
    )


_DEMO = "SmolLM2-135M-Instruct"


def _one_run(told: dict[str, Any]) -> str:
    head = ("pattern", "method", *told["dense"], "mean loss of the matrices", "seconds")
    order = {pattern: i for i, pattern in enumerate(("50 %", "2:4", "60 %", "4:8", "70 %"))}
    texts = list(told["dense"])
    rows: list[tuple[str, ...]] = [("dense", "", *(f"{told['dense'][name]:.2f}" for name in texts), "", "")]
    for cell in sorted(told["cells"].values(), key=lambda cell: (order[cell["pattern"]], _judged(cell, texts))):
        loss = "" if cell["loss"] is None else f"{cell['loss']:.4f}"
        values = [f"{cell['perplexity'][name]:.2f}" if "perplexity" in cell else "failed" for name in texts]
        rows.append((cell["pattern"], cell["method"], *values, loss, f"{cell['seconds']:.0f}"))
    length, text = told.get("length", 1024), told.get("calibration", "BoolQ passages")
    model, dtype = told.get("model", _DEMO), told["dtype"].removeprefix("torch.")
    about = f"**{model}**, {dtype}, pruned by {told['samples']} × {length:,} tokens of {text}"
    return f"{about}\n\n" + table(head, rows)


def _judged(cell: dict[str, Any], texts: list[str]) -> float:
    """By the last of the texts that no method was calibrated with."""
    return cell["perplexity"][texts[min(1, len(texts) - 1)]] if "perplexity" in cell else float("inf")


def layers() -> str:
    """What the last run of tools/layers.py wrote: a line for each method, layer by layer."""
    file = ROOT / "layers-output" / "layers.json"
    if not file.is_file():
        return "Run `.venv/bin/python tools/layers.py --json layers-output/layers.json` first."
    told = json.loads(file.read_text())
    head = ("layer", "pattern", "method", "loss", "on other inputs", "seconds", "MB")
    return (
        "`tools/layers.py`, one core, each line a process of its own: one weight pruned whose inputs had been added up,"
        " the seconds of that, and by how much memory rose at most. Loss as above, and on inputs that the method has"
        " not seen. Layers of SmolLM2-135M with 32 × 1,024 tokens of BoolQ, then random square ones.\n\n"
        + table(head, [(row["layer"], row["pattern"], row["method"], *_figures(row)) for row in told])
    )


def _figures(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if "failed" in row:
        return row["failed"], "", "", ""
    return f"{row['loss']:.4f}", f"{row['held out']:.4f}", f"{row['seconds']:.2f}", f"{row['bytes'] / 1e6:.0f}"


def sparse_times() -> str:
    """What the last run of tools/sparse_times.py wrote."""
    file = ROOT / "sparse-times-output" / "sparse_times.json"
    if not file.is_file():
        return "Run `.venv/bin/python tools/sparse_times.py --json sparse-times-output/sparse_times.json` first."
    told = json.loads(file.read_text())
    found = list(told["cells"].values())
    parts = [
        f"`tools/sparse_times.py`: torch {told['torch']}, {told['threads']} thread, {told['vectors']}; median"
        " milliseconds of one product, float32, dense → compressed rows, by turns; bold where rows are faster by 5 %,"
        " and dense bfloat16 in brackets. While other programs ran as well.\n\n"
        + _times_by_tokens([cell for cell in found if cell["device"] == "cpu"], "csr")
    ]
    on_cuda = [cell for cell in found if cell["device"] != "cpu"]
    if on_cuda:
        parts.append(f"On {on_cuda[0]['device']}, bfloat16, dense → 2:4:\n\n{_times_by_tokens(on_cuda, '2:4')}")
    return "\n\n".join(parts)


def _times_by_tokens(cells: list[dict[str, Any]], sparse: str) -> str:
    """A line for each matrix, a column for each number of tokens."""
    tokens = list(dict.fromkeys(cell["tokens"] for cell in cells))
    lines: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        dense, ours, *narrow = (
            1e3 * cell["seconds"][k] for k in ("dense", sparse, "dense bfloat16") if k in cell["seconds"]
        )
        text = f"{dense:.3g} → {ours:.3g}"
        text = f"**{text}**" if ours <= 0.95 * dense else text
        line = "×".join(map(str, cell["shape"])), f"{100 * cell.get('sparsity', 0.5):g} %"
        lines.setdefault(line, []).append(text + "".join(f" ({t:.3g})" for t in narrow))
    return table(
        ("matrix", "zeros", *(f"{n} token{'s' * (n > 1)}" for n in tokens)),
        [(*line, *row) for line, row in lines.items()],
    )
