"""Measure what docs/results.md says, and write it:

    .venv/bin/python tools/results.py            everything; the matrix takes the longest
    .venv/bin/python tools/results.py faults     one section, or some: matrix, families, faults, programs, peers, ...

The sections programs, peers, importance, weights, layers, sparse, mishaps, kills, demo and hybrid show what
tools/fuzz.py, tools/peers/compare.py, tools/importance.py, tools/weights.py, tools/layers.py, tools/sparse_times.py,
tools/mishaps.py, tools/kill.py and tools/demo wrote last. Those of examples/experiments stay as they are.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.models and tests.faults

from matrix import families, matrix, table  # noqa: E402
from weight_results import layers, sparse_times, weights  # noqa: E402

from tests import models  # noqa: E402
from tests.faults import FAULTS, plant  # noqa: E402

PAGE = ROOT / "docs" / "results.md"


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


def programs() -> str:
    """What the last runs of tools/fuzz.py wrote."""
    files = {name: ROOT / "fuzz-output" / f"{name}.json" for name in ("mutants", "run")}
    if not all(file.is_file() for file in files.values()):
        return "Run `tools/fuzz.py mutants` and `tools/fuzz.py run` with `--json fuzz-output/NAME.json` first."
    mutants, run = (json.loads(file.read_text()) for file in files.values())
    rows = [(m["mutant"], m["programs"], m["law"] or f"survives: {m['survives']}") for m in mutants]
    caught = sum(bool(m["law"]) for m in mutants)
    finds = "\n".join(f"* `{f['reproduce']}`: {f['law']}, {f['said']}" for f in run["finds"]) or "Nothing was found."
    return (
        f"Random programs, checked by an oracle that knows no rule (`tests/programs/partial.py`). {caught} of"
        f" {len(mutants)} planted mistakes are caught; the number is that of the programs it took.\n\n"
        + table(("mistake", "programs", "caught by"), rows)
        + f"\n\nOn the real rules: {run['programs']:,} programs, {run['groups']:,} groups, {run['seconds'] / 60:.0f}"
        f" minutes. {finds}"
    )


def large() -> str:
    """What the last run of tools/large.py wrote."""
    file = ROOT / "large-output" / "large.json"
    if not file.is_file():
        return "Run `tools/large.py transformer-3b hybrid-8b --json large-output/large.json` first."
    rows, runs = [], json.loads(file.read_text())
    for run in runs:
        sizes = f"{run['bytes'] / 1e9:.1f} → {run['result bytes'] / 1e9:.1f} GB"
        took = [f"{run[k]['peak'] / 1e9:.1f} GB, {run[k]['seconds']} s" for k in ("compress", "load original")]
        laws = ", ".join(f"{name} {error:.1g}" for name, error in run["laws"].items())
        rows.append((run["model"], sizes, ", ".join(run["passes"]), *took, laws, f"{run['reload error']:.1g}"))
    names = ("model", "weights", "passes", "compress: peak, time", "load with transformers", "laws", "reload")
    beside = "; ".join(f"{run['model']}: {run['beside']}" for run in runs if "beside" in run)
    return (
        "`tools/large.py`: random bfloat16 weights on disk, compressed from directory to directory with every proof,"
        " on two CPU cores. Peak is the process's largest resident memory, next to what loading the original with"
        " `from_pretrained` and reading it once takes.\n\n" + table(names, rows) + (f"\n\n{beside}." if beside else "")
    )


def importance() -> str:
    """What the last run of tools/importance.py wrote."""
    file = ROOT / "importance-output" / "importance.json"
    if not file.is_file():
        return "Run `.venv/bin/python tools/importance.py --json importance-output/importance.json` first."
    told = json.loads(file.read_text())
    parts = [
        "`tools/importance.py`: SmolLM2-135M-Instruct, whose linear weights lie on a 4-bit grid, without training after"
        f" the cut. Perplexity of held-out articles; dense {told['dense']:.2f}. Random is the mean of three seeds."
        " Minitron (arXiv 2407.14679, loss on WikiText-2, batch and sequence) ranks mean, mean 6.89; L2, mean 7.23;"
        " mean, L2 7.84; mean, variance 8.29; L2, L2 8.37; L2, variance 8.61."
    ]
    for axis in dict.fromkeys(cell["axis"] for cell in told["cells"].values()):
        parts.append(_scores_of(axis, [cell for cell in told["cells"].values() if cell["axis"] == axis]))
    rows = [
        (k, v["watched"], f"{v['seconds']:.0f} s", f"{v['peak'] / 1e9:.1f} GB") for k, v in told["calibration"].items()
    ]
    parts.append(
        "Calibration on 8,192 tokens, one thread, the model in float32; *peak* is that of the process so far:\n\n"
        + table(("statistics", "of", "time", "peak"), rows)
    )
    return "\n\n".join(parts)


def _scores_of(axis: str, cells: list[dict[str, Any]]) -> str:
    """Scores by amounts, the best at the smallest amount first."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        amount = f"{cell['got']} of {cell['of']}" if axis != "layers" else f"{len(cell['removed'])} layers"
        found.setdefault(cell["score"], {}).setdefault(amount, []).append(cell["perplexity"])
    amounts = list(dict.fromkeys(amount for by in found.values() for amount in by))
    mean = {score: {a: sum(v) / len(v) for a, v in by.items()} for score, by in found.items()}
    order = sorted(mean, key=lambda score: mean[score].get(amounts[0], float("inf")))
    rows = [(score, *(f"{mean[score][a]:.1f}" if a in mean[score] else "" for a in amounts)) for score in order]
    return f"**{axis}**\n\n" + table(("score", *(f"{a} gone" for a in amounts)), rows)


def mishaps() -> str:
    """What the last run of tools/mishaps.py wrote."""
    file = ROOT / "mishaps-output" / "mishaps.json"
    if not file.is_file():
        return "Run `.venv/bin/python tools/mishaps.py --json mishaps-output/mishaps.json` first."
    told = json.loads(file.read_text())
    held = sum(not row["wrong"] for row in told)
    rows = [(row["kind"], row["name"], row["ends"], _cell(row["said"]), row["left"]) for row in told]
    return (
        f"{held} of {len(told)} end as they should: without a traceback, without half a result, with no other file"
        " touched. An end is the exit code of the command, or what Python raises; … is a folder.\n\n"
        + table(("kind", "what goes wrong", "ends", "what is said", "what is left"), rows)
    )


def kills() -> str:
    """What the last runs of tools/kill.py wrote, one of each command."""
    files = {command: ROOT / "kill-output" / f"{command}.json" for command in ("compress", "distill")}
    found = [_kills_of(command, file) for command, file in files.items() if file.is_file()]
    return "\n\n".join(found) or "Run `.venv/bin/python tools/kill.py --json kill-output/compress.json` first."


def _kills_of(command: str, file: Path) -> str:
    told = json.loads(file.read_text())
    by = " and ".join(f"{count} by {name}" for name, count in sorted(told["signals"].items()))
    return (
        f"`tools/kill.py`, `fxcompress {command}`: {told['rounds']} results in {told['runs']} runs, of which"
        f" {sum(told['kills'].values())} were killed, {by}; {told['resumed']} finished stages were taken over,"
        f" {told['lost']} lost."
        f" {len(told['differences'])} files differ from an undisturbed run's, {len(told['leftovers'])} are left over."
        "\n\n" + table(("killed after", "times"), sorted(told["kills"].items()))
    )


def _cell(text: str, most: int = 160) -> str:
    """The first line, as a cell of a table can have it."""
    first = text.partition("\n")[0].replace("|", "\\|").encode("utf-8", "backslashreplace").decode()
    first = re.sub(r": [\d.]+ s$", "", first.replace(str(Path.home()), "~"))  # nothing of this machine
    return first if len(first) <= most else first[: most - 1] + "…"


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


def demo_of_hybrid() -> str:
    """What the last run of tools/demo_hybrid.py wrote."""
    folder = ROOT / "demo-hybrid-output"
    if not (folder / "report.txt").is_file():
        return "Run `./tools/demo` first."
    notes = json.loads((folder / "report.json").read_text())["notes"]
    scores, training = notes["distillation"]["held_out"], notes["distillation"]["training"]
    rows = [("original", f"{scores['teacher']['perplexity']:.2f}", "", "")]
    for name, score in (("compressed", scores["before"]), ("and distilled", scores["after"])):
        rows.append((name, f"{score['perplexity']:.2f}", f"{score['kl']:.3f}", f"{score['agreement']:.1%}"))
    report = _without_trailing_blanks((folder / "report.txt").read_text())
    return "\n\n".join(
        [
            f"`./tools/demo` on `examples/models/{notes['demo']['model']}`, with {notes['distillation']['steps']} steps"
            f" of {training['batch_size']} rows of forward KL against the original; judged on novels by other authors.",
            table(("", "perplexity", "nats from the original", "the same next token"), rows),
            f"```\n{report}\n```",
        ]
    )


def _without_trailing_blanks(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "matrix": ("Every family, every pass", matrix),
    "families": ("What a family costs, and what stays pinned", families),
    "faults": ("Planted faults", faults),
    "programs": ("Random programs and mutants", programs),
    "peers": ("Next to the peers", peers),
    "large": ("Models larger than the memory allowed for them", large),
    "importance": ("Which score loses least", importance),
    "weights": ("Which method of weight pruning loses least", weights),
    "layers": ("What pruning a layer takes, and what it loses", layers),
    "sparse": ("Where sparse kernels are faster", sparse_times),
    "mishaps": ("What goes wrong", mishaps),
    "kills": ("Killed runs", kills),
    "bench": ("Time of capture and analysis", bench),
    "demo": ("A real model", demo),
    "hybrid": ("A trained hybrid, and what distillation wins back", demo_of_hybrid),
}


def main(chosen: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    old = PAGE.read_text() if PAGE.exists() else ""
    parts = [
        "# Results\n\nMeasured by `.venv/bin/python tools/results.py` and `examples/experiments/`; nothing is typed in"
        " by hand."
    ]
    for name, (title, section) in SECTIONS.items():
        if name in chosen or not chosen:
            print(f"measuring: {title}", flush=True)
            body = section()
        else:
            found = re.search(rf"^## {re.escape(title)}\n\n(.*?)(?=^## |\Z)", old, re.M | re.S)
            body = found[1].strip() if found else "not measured yet"
        parts.append(f"## {title}\n\n{body}")
    PAGE.write_text("\n\n".join([*parts, *_of_others(old)]) + "\n")


def _of_others(page: str) -> list[str]:
    """The sections that examples/experiments wrote."""
    scripts = (ROOT / "examples" / "experiments").glob("*.py")
    titles = [title for script in scripts for title in re.findall(r'^TITLE = "(.*)"', script.read_text(), re.M)]
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return [f"## {title}\n\n{body.strip()}" for title, body in sections if title in titles]


if __name__ == "__main__":
    main(sys.argv[1:])
