"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from fxcompress.pages import environment
from fxcompress.report import FIGURES, Report, collapse, losses, times


def render(report: Report) -> str:
    """The whole page. What comes from models and recipes is escaped."""
    templates = environment()
    templates.filters |= {"short": short, "said": said}
    laws = [law for entry in report.passes for law in entry["laws"]]
    return templates.get_template("report.html.j2").render(
        title=next((run["model"] for run in report.notes.get("runs", [])), report.notes.get("model", "a model")),
        figures=[_figure(name, *sizes) for name, sizes in report.summary().items() if any(sizes)],
        passes=[_pass(entry) for entry in report.passes],
        checked=sum(law["error"] is not None for law in laws),
        failed=sum(not law["holds"] for law in laws),
        reload_error=report.reload_error,
        capture_error=report.capture_error,
        runs=report.notes.get("runs", []),
        notes=_others(report.notes),
    )


def _figure(name: str, before: int, after: int) -> dict[str, Any]:
    unit = "B" if "bytes" in name else ""
    part = after / before if before else math.inf
    change = "unchanged" if before == after else f"{100 * (part - 1):+.1f} %".replace("-", "−")
    return {"name": FIGURES[name], "unit": unit, "before": before, "after": after, "part": part, "change": change}


def _pass(entry: Mapping[str, Any]) -> dict[str, Any]:
    before, after = entry["before"]["parameters"], entry["after"]["parameters"]
    found = collapse(entry["rows"])
    rows = [
        {**row, "key": key, "alike": count - 1, "loss": losses(row["loss"]), "times": times(row.get("times"))}
        for key, row, count in found
    ]
    zeros = sum(row["got"] for row in entry["rows"] if row["role"] == "projection")
    pruned = any(row["loss"] for row in rows)
    told = {"pruned": pruned, "timed": any(row["times"] for row in rows)}
    return {**entry, "rows": rows, "removed": before - after, "of": before, "zeros": zeros, **told}


def _others(notes: Mapping[str, Any]) -> str:
    """What a caller noted beside the runs."""
    others = {name: value for name, value in notes.items() if name not in ("runs", "model")}
    return yaml.safe_dump(others, sort_keys=False, allow_unicode=True) if others else ""


def short(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 8,030,261,248 is 8.03 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or prefix == "T":
            digits = f"{number:.3g}" if prefix else f"{number:g}"
            return f"{digits} {prefix}{unit}".rstrip()
        number /= 1000
    raise AssertionError("the last prefix returns")


def said(value: Any) -> str:
    """An option as a recipe says it."""
    return repr(value)
