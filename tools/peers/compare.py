"""The same requests to every peer and to fxcompress, each in a process of its own, all judged by the same measurements.

    .venv/bin/python tools/peers/compare.py                     everything: writes peers.json and peers.md
    .venv/bin/python tools/peers/compare.py --only mamba2       cells whose name has the word; the others stay
    .venv/bin/python tools/peers/compare.py --envs FOLDER --out FOLDER

Environments are made under .venv/peers where they are missing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, where modelopt.py and others would hide the packages of their names.
sys.path[:1] = [str(ROOT), str(ROOT / "tools")]

from peers import environments  # noqa: E402
from peers.judge import Verdict, facts_of, judge  # noqa: E402
from peers.table import COLUMNS, LATER, NO, ROWS, markdown  # noqa: E402

from tests.peers import originals  # noqa: E402

LIMIT = 120  # seconds a cell


@dataclass(frozen=True)
class Cell:
    row: str
    model: str
    column: str

    @property
    def name(self) -> str:
        return f"{self.row}.{self.model}.{self.column}"

    @property
    def settled(self) -> Verdict | None:
        """The verdict of a cell that there is nothing to run for."""
        if (self.row, self.column) in LATER:
            return Verdict("later")
        if (self.row, self.column) in NO:
            return Verdict("no", [NO[self.row, self.column]])
        return None


def main() -> None:
    options = _options()
    warnings.filterwarnings("ignore")
    file = options.out / "peers.json"
    results = json.loads(file.read_text()) if file.exists() else {}  # with --only, the others stay as they were
    started = time.time()
    for cell in (Cell(row, model, column) for row in ROWS for model in ROWS[row].models for column in COLUMNS):
        if options.only in cell.name:
            verdict = cell.settled or _measured(cell, options)
            results[cell.name] = verdict.to_json()
            said = "; ".join(verdict.faults)
            print(f"{time.time() - started:5.0f} s  {cell.name}: {verdict.outcome}  {said}", flush=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
            (options.out / "peers.md").write_text(markdown(results) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=ROOT / ".venv" / "peers", help="the peers' environments")
    parser.add_argument("--out", type=Path, default=ROOT / "peers-output", help="results, and what every cell left")
    parser.add_argument("--only", default="", help="run the cells whose name holds this")
    options = parser.parse_args()
    options.envs, options.out = options.envs.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def _measured(cell: Cell, options: argparse.Namespace) -> Verdict:
    original = _original(cell.model, options.out / "originals")
    out = options.out / "cells" / cell.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    column = COLUMNS[cell.column]
    python = environments.python_of(column.environment, options.envs) if column.environment else Path(sys.executable)
    case = cell.row + column.variant
    said = _run(python, column.script, [case, str(original), str(out)], out)
    if said:
        return judge(cell.row, original, out) if "error" in facts_of(out) else Verdict("fails", [said])
    said = _run(python, "reload", [str(original), str(out)], out) if (out / "saved").exists() else ""
    return Verdict("wrong", [f"saved, but does not load: {said}"]) if said else judge(cell.row, original, out)


@functools.cache
def _original(name: str, folder: Path) -> Path:
    """Written anew in every run, from the same seed."""
    shutil.rmtree(folder / name, ignore_errors=True)
    return originals.write(name, folder)


def _run(python: Path, script: str, arguments: list[str], out: Path) -> str:
    """Run one of these scripts, and say what ended it before its time, if anything did."""
    path = os.pathsep.join([str(ROOT / "tools"), *([str(ROOT)] if python == Path(sys.executable) else [])])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    with (out / f"{script}.log").open("w") as log:
        try:
            done = subprocess.run(
                [str(python), "-m", f"peers.{script}", *arguments],
                env={**os.environ, **quiet, "PYTHONPATH": path},
                cwd=out,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no end after {LIMIT} s"
    if done.returncode == 0:
        return ""
    lines = (out / f"{script}.log").read_text().strip().splitlines()
    return lines[-1].strip()[:160] if lines else f"exit code {done.returncode}"


if __name__ == "__main__":
    main()
