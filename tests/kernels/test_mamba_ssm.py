"""Against the reference functions of mamba-ssm and causal-conv1d, where tools/test has put them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("FXCOMPRESS_MAMBA_SSM", HERE.parent.parent / ".venv/mamba_ssm"))


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Relative errors by case, then by output or gradient."""
    if not FOLDER.is_dir():
        pytest.skip(f"mamba-ssm and causal-conv1d are not in {FOLDER} (FXCOMPRESS_MAMBA_SSM names another folder)")
    script = [sys.executable, HERE / "mamba_ssm_reference.py", FOLDER]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("case", "compared"),
    {
        "ssd_scan, whole chunks": {"y", "x", "dt", "A", "B", "C", "D", "dt_bias"},
        "ssd_scan, a rest and groups": {"y", "x", "dt", "A", "B", "C", "D", "dt_bias"},
        "ssd_scan, the paper's listing": {"y", "x", "dt", "A", "B", "C"},
        "selective_scan": {"y", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"},
        "causal_conv1d": {"y", "x", "weight", "bias"},
        "causal_conv1d, silu": {"y", "x", "weight", "bias"},
    }.items(),
)
def test_outputs_and_gradients_are_theirs(case: str, compared: set[str], errors: dict[str, dict[str, float]]):
    assert set(errors[case]) == compared
    assert max(errors[case].values()) < 1e-5
