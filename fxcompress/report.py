"""What changed and what proves it: parameters, bytes, operations and cache, pass by pass; JSON, text, HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

FIGURES = {
    "parameters": "parameters",
    "weight_bytes": "weight bytes",
    "prefill_flops_per_token": "FLOPs per token, prefill",
    "decode_flops_per_token": "FLOPs per token, decode",
    "cache_bytes_per_token": "cache bytes per token",
    "cache_bytes_per_sequence": "state bytes per sequence",
}


@dataclass
class Report:
    """Plain data: one entry a pass, each with options, rows (asked, got, why), laws and the figures around it."""

    passes: list[dict[str, Any]] = field(default_factory=list)
    reload_error: float | None = None
    capture_error: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Any]) -> Report:
        """From the records of a pipeline."""
        return cls([_entry(record) for record in records])

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """The inverse of ``to_json``. Raises CompressError, naming the field, for anything else."""
        from fxcompress.schema import ReportFields, check

        check(ReportFields, data, "report")
        errors = (data.get("reload_error"), data.get("capture_error"))
        return cls(list(data["passes"]), *errors, notes=dict(data.get("notes", {})))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> dict[str, tuple[int, int]]:
        """Each figure before the first and after the last pass."""
        if not self.passes:
            return {}
        first, last = self.passes[0]["before"], self.passes[-1]["after"]
        return {name: (first[name], last[name]) for name in FIGURES}

    def write(self, folder: str | Path) -> list[Path]:
        """Write report.json, report.html and report.txt into a folder."""
        folder = Path(folder)
        files = {
            "report.json": json.dumps(self.to_json(), indent=1) + "\n",
            "report.html": self.to_html(),
            "report.txt": self.to_text(),
        }
        for name, text in files.items():
            # a model's folder may have a name that is no UTF-8
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        return [folder / name for name in files]

    def to_text(self, width: int = 110) -> str:
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(self)
        return console.export_text()

    def to_html(self) -> str:
        from fxcompress.report_html import render

        return render(self)

    def __rich__(self) -> Group:
        return Group(self._summary_table(), self.passes_alone())

    def passes_alone(self) -> Group:
        """A table for every pass, without what they have changed together."""
        return Group(*(_pass_table(entry) for entry in self.passes))

    def _summary_table(self) -> Table:
        table = Table(title="Before and after", title_justify="left")
        for name in ("", "before", "after", "ratio"):
            table.add_column(name, justify="left" if not name else "right")
        for name, (before, after) in self.summary().items():
            if before or after:
                table.add_row(FIGURES[name], f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else "")
        errors = {"captured equals model": self.capture_error, "saved equals reloaded": self.reload_error}
        for name, error in errors.items():
            if error is not None:
                table.add_row(name, "", f"error {error:.1e}", "")
        return table

    def __str__(self) -> str:
        return self.to_text()


def _entry(record: Any) -> dict[str, Any]:
    """What a record says but for the step, which stands in the plan."""
    return {name: value for name, value in record.to_json().items() if name != "step"}


def collapse(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], int]]:
    """Rows alike but for their key and loss, as one line: (first key, row with all their losses, how many)."""
    out: dict[tuple[Any, ...], tuple[str, dict[str, Any], int]] = {}
    for row in rows:
        alike = tuple((k, repr(v)) for k, v in row.items() if k not in ("key", "loss"))
        first, kept, count = out.get(alike, (row["key"], {**row, "loss": []}, 0))
        kept["loss"] += [row["loss"]] if row.get("loss") is not None else []
        out[alike] = (first, kept, count + 1)
    return list(out.values())


def losses(values: list[float]) -> str:
    """Of matrices, the least and the largest."""
    return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values)))) if values else ""


def times(values: Mapping[str, list[float]] | None) -> str:
    """What was timed, by the dense kernel and by the sparse one."""
    return ", ".join(f"{what} {1e3 * a:.3g} → {1e3 * b:.3g} ms" for what, (a, b) in (values or {}).items())


def short(value: Any) -> str:
    """An option as text; of a long list of ids, how many there are."""
    return f"<{len(value)} values>" if isinstance(value, list) and len(value) > 12 else repr(value)


def _pass_table(entry: Mapping[str, Any]) -> Group:
    options = ", ".join(f"{k}={short(v)}" for k, v in entry["options"].items())
    table = Table(title=f"{entry['name']}({options})", title_justify="left")
    pruned, timed = (any(row.get(name) is not None for row in entry["rows"]) for name in ("loss", "times"))
    more = [*(["loss"] if pruned else []), *(["dense → sparse"] if timed else [])]
    for name in ("group", "role", "of", "asked", "got", "step", *more, "why not"):
        table.add_column(name, justify="left" if name in ("group", "role", "why not") else "right", overflow="fold")
    for key, row, count in collapse(entry["rows"]):
        name = key if count == 1 else f"{key} and {count - 1} like it"
        told = [str(row["of"]), f"{row['asked']:g}", str(row["got"]), str(row["step"])]
        told += [losses(row["loss"])] if pruned else []
        told += [times(row.get("times"))] if timed else []
        table.add_row(name, row["role"], *told, row["why"])
    return Group(table, *(_law_line(law) for law in entry["laws"]))


def _law_line(law: Mapping[str, Any]) -> str:
    if law["error"] is None:
        return f"  {law['name']}: not checked ({law['why']})"
    verdict = "holds" if law["holds"] else "FAILS"
    return f"  {law['name']}: {verdict}, error {law['error']:.2g} (at most {law['tolerance']:g})"
