"""Models built with mamba-ssm, where tools/test has put it, in a process of their own: transformers' modeling files
would take its kernels if they saw it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("FXCOMPRESS_MAMBA_SSM", HERE.parent / ".venv/mamba_ssm"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["captured", "interpreted", "cut", "applied"])
def test_models_of_mamba_ssm_are(part: str):
    """What this means stands in mamba_package/ in a file of this name."""
    if not FOLDER.is_dir():
        pytest.skip(f"mamba-ssm and causal-conv1d are not in {FOLDER} (FXCOMPRESS_MAMBA_SSM names another folder)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"{part}.py"]
    environment = os.environ | {"FXCOMPRESS_MAMBA_SSM": str(FOLDER.resolve())}
    environment["TRITON_INTERPRET"] = str(int(part == "interpreted"))
    result = subprocess.run(command, cwd=HERE / "mamba_package", env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
