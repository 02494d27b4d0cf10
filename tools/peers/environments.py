"""One virtual environment a peer, because their pins exclude each other; made once, used again.

torch is pinned everywhere: one version for all, and the one that exists as a build for the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"  # where the peer's own pins allow it
PACKAGES: dict[str, list[str]] = {
    "torch_pruning": ["torch-pruning==1.6.1", TRANSFORMERS],
    "modelopt": ["nvidia-modelopt==0.47.0", "requests", TRANSFORMERS],  # imports requests without asking for it
    "llm_compressor": ["llmcompressor==0.14.0.1"],
    "mergekit": ["mergekit==0.1.5", TRANSFORMERS],
    "kvpress": ["kvpress==0.5.5"],
}
# FastNAS counts with this version alone; what it depends on besides torch and numpy it does not use.
BARE: dict[str, list[str]] = {"modelopt": ["torchprofile==0.0.4"]}


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing."""
    made = folder / name
    if not (made / "ready").exists():
        print(f"making {made}", flush=True)
        _make(name, made)
        (made / "ready").touch()
    return made / "bin" / "python"


def _make(name: str, made: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(made)], check=True)
    constraints = made / "constraints.txt"
    constraints.write_text(f"{TORCH}\n")
    pip = [str(made / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["--constraint", str(constraints)]
    subprocess.run([*pip, TORCH, *PACKAGES[name]], check=True)
    if name in BARE:
        subprocess.run([*pip, "--no-deps", *BARE[name]], check=True)
