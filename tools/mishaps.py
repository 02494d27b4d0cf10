"""Let everything go wrong that tests/mishaps lists, and write what came of each.

    .venv/bin/python tools/mishaps.py --json mishaps-output/mishaps.json
    .venv/bin/python tools/mishaps.py --kind configs --kind stops

A correct run into the same folder follows the first mishap of each kind that leaves nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.mishaps

from tests.mishaps import MISHAPS  # noqa: E402
from tests.mishaps.place import NOTHING, Mishap, carry_out, works_again  # noqa: E402

FIRST = {mishap.kind: mishap for mishap in reversed(MISHAPS) if mishap.left == NOTHING and not mishap.works}


def told(mishap: Mishap, once_more: bool) -> dict[str, Any]:
    """A row of the table; ``wrong`` is empty where all is as the mishap and the laws say."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = carry_out(mishap, Path(folder))
        wrong, again = outcome.unlike(mishap), works_again(Path(folder)) if once_more else ""
    wrong += [f"a correct run after it: {again}"] if again else []
    row = {"kind": mishap.kind, "name": mishap.name, "ends": outcome.ends, "said": outcome.said, "left": outcome.left}
    return row | {"wrong": wrong, "seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kind", action="append", choices=sorted({mishap.kind for mishap in MISHAPS}))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for mishap in MISHAPS:
        if options.kind is None or mishap.kind in options.kind:
            rows.append(told(mishap, mishap == FIRST[mishap.kind]))
            print(mishap.kind, "·", mishap.name, "·", "; ".join(rows[-1]["wrong"]) or rows[-1]["ends"], flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
