"""Ctrl-C at any moment leaves no half of a result under the final name; the same command goes on from there."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# The command line, stopping where it is told to: it says so and waits to be interrupted.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
from fxcompress import observe
from fxcompress.export import save

def stop(real):
    def stopping(*arguments, **options):
        value = real(*arguments, **options)
        print("HERE", flush=True)
        time.sleep(60)
        return value
    return stopping

if sys.argv.pop(1) == "saving":
    save.write_shard = stop(save.write_shard)
else:
    observe.Observer.run_node = stop(observe.Observer.run_node)

from fxcompress.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["calibration", "saving"])
def test_an_interrupted_run_goes_on_where_it_was(run, saved, tmp_path, moment):
    (tmp_path / "text.txt").write_text("w4 w5 w6 w7 " * 20)
    options = ["--pass", "PruneFFN(ratio=0.25, score='activation')", "--calibration", str(tmp_path / "text.txt")]
    command = [
        "compress",
        str(saved("llama")),
        "-o",
        str(tmp_path / "deep" / "out"),
        *options,
        "--samples=4",
        "--length=8",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, moment, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "HERE\n"
    if moment == "saving":
        assert list((tmp_path / "deep").glob(".out.*/result/*.safetensors")), "nothing was being written"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "error: interrupted, nothing was written under its final name" in stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [".out.fxcompress"]
    assert run(*command).exit_code == 0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_the_installed_program_says_what_it_can_do():
    program = sys.executable.rpartition("/")[0] + "/fxcompress"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("inspect", "compress", "verify", "report"):
        assert command in shown
