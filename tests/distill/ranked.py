"""A distillation as one of several processes runs it: started by torchrun, it does what its arguments say.

    torchrun --nproc_per_node 2 tests/distill/ranked.py SPEC.json

SPEC: student and teacher (directories), training, objective, out, die_at (a step) and report (a file to
write).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import fxcompress
from fxcompress import Objective, Training
from fxcompress.distillation.sharded import Sharded


def main(spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    plant(spec)
    data = [{name: torch.tensor(value) for name, value in row.items()} for row in spec["data"]]
    held_out = None if spec.get("held_out") is None else torch.tensor(spec["held_out"])
    found = fxcompress.distill(
        spec["student"],
        spec["teacher"],
        data,
        training=Training(**spec["training"]),
        objective=Objective(**spec.get("objective", {})),
        held_out=held_out,
        offline=spec.get("offline"),
        out=spec.get("out"),
        log=lambda line: print(f"line {line.step} {line.loss!r}", flush=True),
    )
    if os.environ["RANK"] == "0" and spec.get("report"):
        state = found.student.program.state if hasattr(found.student, "program") else found.student.state_dict()
        save_file({name: value.contiguous().clone() for name, value in state.items()}, spec["report"] + ".safetensors")
        Path(spec["report"]).write_text(json.dumps(found.to_json()))


def plant(spec: dict[str, Any]) -> None:
    """What goes wrong in the second process."""
    if spec.get("die_at") and os.environ["RANK"] == "1":
        real = Sharded._update

        def die(self: Sharded, step: int) -> None:
            if step == spec["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, step)

        Sharded._update = die  # type: ignore[method-assign]
    if spec.get("fault"):
        exec(spec["fault"], {"Sharded": Sharded, "torch": torch, "rank": int(os.environ["RANK"])})


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
