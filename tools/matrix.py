"""The sections of docs/results.md about families: every family with every pass, and what a family costs."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fxcompress
from fxcompress.axes import AxisMap
from tests import matrix as cells
from tests import models, test_families, test_layers


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(list(head))]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def matrix() -> str:
    """Family x pass: a cell counts only with a non-zero cut; laws in float64, reload in float32."""
    rows = []
    for name in models.ALL:
        for what in [what for what in cells.PASSES if what in cells.APPLIES[name]]:
            rows.append(_cell(name, what))
            print(*rows[-1], sep=" | ", flush=True)
    head = ("family", "axis", "asked", "got", "parameters", "mask", "permutation", "reload", "loads with")
    stock = sum(row[-1] == "transformers" for row in rows)
    return (
        f"{len(rows)} cells, {stock} of which load with stock transformers. Tiny models of each family"
        " (`tests/models.py`), the passes of `tests/matrix.py`. Asked and got count indices over all groups of the pass"
        " (for layers: layers). Errors are relative to the largest logit: *mask* of masked original = pruned and"
        " *permutation* in float64, *reload* of saved = reloaded in float32. *shapes* and *count* hold in each.\n\n"
        + table(head, rows)
    )


def _cell(name: str, what: str) -> tuple:
    p = cells.PASSES[what]
    entry = fxcompress.apply(models.captured(name), [p]).report.passes[0]
    laws = {law["name"]: law for law in entry["laws"]}
    assert laws["shapes"]["holds"]
    assert laws["count"]["holds"]
    rows = [row for row in entry["rows"] if not row["why"]]
    asked, got = (sum(row[key] for row in rows) for key in ("asked", "got"))
    assert got > 0
    assert all(abs(row["asked"] - row["got"]) <= row["step"] / 2 for row in rows)
    small = fxcompress.apply(models.captured(name, torch.float32), [p], verify=False)
    with tempfile.TemporaryDirectory() as folder:
        out = small.save_pretrained(Path(folder) / "out")
        manifest = json.loads((out / "fxcompress.json").read_text())
    counts = f"{entry['before']['parameters']:,} → {entry['after']['parameters']:,}"
    errors = [error(laws[k]["error"]) for k in ("prune equals mask", "permutation")]
    why = manifest["why_not_transformers"]
    kind = manifest["loads_with"] + (f": {why}" if why else "")
    return (name, what, f"{asked:g}", got, counts, *errors, error(small.report.reload_error), kind)


def error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def families() -> str:
    """What a family costs: time, and lines of its own; what stays pinned in it, and why."""
    head = ("family", "capture s", "analysis s", "nodes", "free groups", "pinned", "why", "lines of its own")
    refused = "\n".join(f"* {name}: {why}" for name, why in _refusals())
    return (
        "Tiny models, one thread. *Lines of its own*: lines of the product that have the family's name in an identifier"
        " or a string, the names of functions in the table of replacements aside (`mamba2_chunk_scan` serves six"
        " families).\n\n"
        + table(head, [_family(name) for name in models.ALL])
        + "\n\nRefused at capture, with the reason:\n\n"
        + refused
    )


def _family(name: str) -> tuple:
    model = models.tiny(name)
    start = time.perf_counter()
    program = fxcompress.capture(model)
    captured = time.perf_counter()
    axes = program.get(AxisMap)
    analysed = time.perf_counter()
    pinned = [g for g in axes.groups if g.pinned]
    reasons = sorted({g.pinned[0].split(", at ")[0] for g in pinned})
    times = (f"{captured - start:.2f}", f"{analysed - captured:.3f}")
    free = len(axes.groups) - len(pinned)
    return (name, *times, len(program.graph.nodes), free, len(pinned), "; ".join(reasons), lines_of_its_own(name))


def lines_of_its_own(family: str) -> int:
    """Lines of the product in whose files the family's name is a word of an identifier or a string."""
    word = family.split("_")[0].rstrip("0123456789")
    sources = [path for module, path in test_layers.SOURCES.items() if "replacements" not in module]
    texts = [path.read_text() for path in sources]
    return sum(_mentions(text, word) for text in texts if word in test_layers.named_families(text, {word}))


def _mentions(text: str, word: str) -> int:
    return sum(word in line.split("#")[0].lower() for line in text.splitlines())


def _refusals() -> Iterator[tuple[str, str]]:
    for name, values in test_families.REFUSED.items():
        config = AutoConfig.for_model(name, vocab_size=96, hidden_size=64, **values)
        try:
            fxcompress.capture(AutoModelForCausalLM.from_config(config).eval())
        except fxcompress.CaptureError as refusal:
            yield name, re.sub(r"\S*site-packages/", "", " ".join(str(refusal).split()))
