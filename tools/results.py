"""Measure what docs/results.md says, and write it:

    .venv/bin/python tools/results.py            everything, some ten minutes on two cores
    .venv/bin/python tools/results.py faults     one section: matrix, faults, peers, bench, demo

The sections peers and demo show what tools/peers/compare.py and tools/demo wrote last.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.models and tests.faults

import fxcompress  # noqa: E402
from fxcompress.passes import (  # noqa: E402
    PruneAttentionHeads,
    PruneAxes,
    PruneEmbedding,
    PruneFFN,
    PruneSSMChannels,
    PruneSSMHeads,
    RemoveLayers,
)
from tests import models  # noqa: E402
from tests.faults import FAULTS, plant  # noqa: E402

PAGE = ROOT / "docs" / "results.md"
PASSES = [
    PruneFFN(ratio=0.25),
    PruneSSMHeads(ratio=0.5),
    PruneSSMHeads(ratio=0.25),
    PruneSSMChannels(ratio=0.25),
    PruneAttentionHeads(ratio=1 / 3),
    PruneAttentionHeads(ratio=0.5, kv=True),
    PruneEmbedding(ratio=0.25),
    RemoveLayers(layers=(1,)),
    PruneAxes(role="ssm_state", ratio=0.25),
    PruneAxes(role="v_channel", ratio=0.25),
    PruneAxes(role="qk_channel", ratio=0.25),
    PruneAxes(role="expert_neuron", ratio=0.25),
]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(list(head))]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def matrix() -> str:
    """Family x pass: a cell counts only with a non-zero cut; laws in float64, reload in float32."""
    rows = []
    for name in models.FAMILIES:
        for p in PASSES:
            row = _cell(name, p)
            if row is not None:
                rows.append(row)
    head = (
        "family",
        "pass",
        "asked",
        "got",
        "parameters",
        "prune = mask",
        "permutation",
        "saved = reloaded",
        "loads with",
    )
    return (
        "Tiny models of each family (`tests/models.py`). Asked and got count indices over all groups of the pass (for"
        " layers: layers). Errors are relative to the largest logit, the laws' in float64, the reload's in float32."
        " *shapes* and *count* hold in every row.\n\n" + table(head, rows)
    )


def _cell(name: str, p: fxcompress.passes.PruneAxes) -> tuple | None:
    try:
        entry = fxcompress.apply(models.captured(name), [p]).report.passes[0]
    except fxcompress.CompressError as refusal:
        if "in this model" in str(refusal):
            return None
        return (name, _say(p), "", "", "", "", "", "", f"refused: {refusal}")
    laws = {law["name"]: law for law in entry["laws"]}
    assert laws["shapes"]["holds"]
    assert laws["count"]["holds"]
    asked, got = (sum(row[key] for row in entry["rows"] if not row["why"]) for key in ("asked", "got"))
    assert got > 0
    small = fxcompress.apply(models.captured(name, torch.float32), [p])
    with tempfile.TemporaryDirectory() as folder:
        out = small.save_pretrained(Path(folder) / "out")
        kind = json.loads((out / "fxcompress.json").read_text())["loads_with"]
    counts = f"{entry['before']['parameters']:,} → {entry['after']['parameters']:,}"
    errors = [_error(laws[k]["error"]) for k in ("prune equals mask", "permutation")]
    return (name, _say(p), f"{asked:g}", got, counts, *errors, _error(small.report.reload_error), kind)


def _say(p: fxcompress.pipeline.Pass) -> str:
    given = {k: round(v, 3) if isinstance(v, float) else v for k, v in p.options().items()}
    return f"{p.name}({', '.join(f'{k}={v}' for k, v in given.items())})"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def faults() -> str:
    """Each planted fault and which laws catch it."""
    names = ("shapes", "count", "prune equals mask", "permutation")
    rows = []
    for fault in FAULTS:
        found = {law.name: law for law in plant(fault, models.captured(fault.family))}
        rows.append(
            (fault.name, fault.family, *("**caught**" if k in found and not found[k].holds else "" for k in names))
        )
    caught = sum("**caught**" in row for row in rows)
    return f"{caught} of {len(rows)} planted faults are caught.\n\n" + table(("fault", "family", *names), rows)


def peers() -> str:
    """What the last run of tools/peers/compare.py wrote."""
    file = ROOT / "peers-output" / "peers.md"
    if not file.is_file():
        return "Run `.venv/bin/python tools/peers/compare.py` first."
    return (
        "`.venv/bin/python tools/peers/compare.py`: tiny models, every peer in an environment of its own with the best"
        " recipe of its documents. **pass**: asked = got, masked original = pruned, ties kept, saved = reloaded, all"
        " read off the files that the peer left; beside it the larger of the two errors.\n\n" + file.read_text().strip()
    )


def bench() -> str:
    run = subprocess.run([sys.executable, str(ROOT / "tools" / "bench.py")], capture_output=True, text=True, check=True)
    return "`.venv/bin/python tools/bench.py`, times in seconds on two CPU cores:\n\n" + run.stdout.strip()


def demo() -> str:
    """What the last run of ./tools/demo wrote."""
    folder = ROOT / "demo-output"
    if not (folder / "report.txt").is_file():
        return "Run `./tools/demo` first."
    told = json.loads((folder / "report.json").read_text())["notes"]["demo"]
    dense = told["perplexity"]["dense"]
    rows = [(what, f"{value:.2f}", f"{value / dense:.3f}") for what, value in told["perplexity"].items()]
    scanned = ", ".join(f"{k}: {v:.1f}" for k, v in next(v for k, v in told.items() if "each layer" in k).items())
    report = _without_trailing_blanks((folder / "report.txt").read_text())
    return "\n\n".join(
        [
            f"`./tools/demo` on {told['model']}; {told['text']}.",
            table(("", "perplexity", "ratio"), rows),
            f"Perplexity on the calibration text without each layer in turn: {scanned}.",
            "\n".join(f"* {caveat}" for caveat in told["caveats"]),
            f"```\n{report}\n```",
        ]
    )


def _without_trailing_blanks(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "matrix": ("Every family, every pass", matrix),
    "faults": ("Planted faults", faults),
    "peers": ("Next to the peers", peers),
    "bench": ("Time of capture and analysis", bench),
    "demo": ("A real model", demo),
}


def main(chosen: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    old = PAGE.read_text() if PAGE.exists() else ""
    parts = ["# Results\n\nMeasured by `.venv/bin/python tools/results.py`; nothing here is typed in by hand."]
    for name, (title, section) in SECTIONS.items():
        if name in chosen or not chosen:
            print(f"measuring: {title}", flush=True)
            body = section()
        else:
            found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", old, re.M | re.S)
            body = found[1].strip() if found else "not measured yet"
        parts.append(f"## {title}\n\n{body}")
    PAGE.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
