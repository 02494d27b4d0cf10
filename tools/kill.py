"""Kill a run again and again, let it go on each time, and compare what comes out with a run that nobody disturbed.

    .venv/bin/python tools/kill.py --rounds 20 --json kill-output/compress.json
    .venv/bin/python tools/kill.py --rounds 20 --json kill-output/distill.json --command distill

A round ends when the result is there. Its runs are killed right after a stage came into the journal, at the moment of
the final name, or at a random one, by SIGKILL in every second round and by SIGINT in the others. Each file must be the
same, byte for byte, and nothing else may be left.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CONFIG = {
    "model_type": "llama",
    **{"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
}
PASSES = ("PruneFFN(ratio=0.25, score='activation')", "PruneAttentionHeads(size=4)", "RemoveLayers(layers=[1])")
_COMPRESS = (
    *(word for text in PASSES for word in ("--pass", text)),
    *("--samples", "8", "--length", "16", "--max-shard-size", "20KB"),
)
_SAVE_EVERY = 2  # steps
_DISTILL = ("--length", "8", "--ce", "1", "--lr", "0.001", "--save-every", str(_SAVE_EVERY))
MOST = 30  # runs of a round
# a job in the background of a shell ignores SIGINT, and so would its children
_PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fxcompress.cli import main; main()"
)
_POLL = 0.002  # seconds
_STEP = "training to step "
_DETAIL = re.compile(" model-.*| to step .*")  # of a stage, which shard or checkpoint


@dataclass
class Tally:
    """What happened in all rounds. ``differences`` and ``leftovers`` must be empty, ``lost`` must be nought."""

    rounds: int = 0
    runs: int = 0
    kills: dict[str, int] = field(default_factory=dict)  # by what the journal had last
    signals: dict[str, int] = field(default_factory=dict)
    resumed: int = 0  # stages that a run found done
    lost: int = 0  # runs that forgot some of them
    differences: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """A model on disk, a text, and a command that makes another model of the two in a folder."""

    folder: Path
    command: str

    @classmethod
    def prepared(cls, folder: Path, command: str) -> Work:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG)).save_pretrained(folder / "model")
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
        words.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "model")
        (folder / "text.txt").write_text(" ".join(f"w{3 + i * i % 90}" for i in range(400)))
        return cls(folder, command)

    def start(self, out: Path) -> subprocess.Popen[str]:
        model, text = str(self.folder / "model"), str(self.folder / "text.txt")
        options = _COMPRESS if self.command == "compress" else (*_DISTILL, "--teacher", model, "--held-out", text)
        by = "--calibration" if self.command == "compress" else "--data"
        command = [sys.executable, "-c", _PROGRAM, self.command, model, "-o", str(out), by, text, *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rounds(count: int, seconds: float, seed: int = 0, command: str = "compress") -> Tally:
    """So many rounds, or as many as begin within the time."""
    tally, started, chance = Tally(), time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        work = Work.prepared(Path(place), command)
        expected, takes = _undisturbed(work)
        while tally.rounds < count and time.monotonic() - started < seconds:
            out = work.folder / f"round{tally.rounds}" / "out"
            out.parent.mkdir()
            _round(work, out, tally, chance, takes)
            found = _contents(out)
            names = sorted(expected.keys() | found.keys())
            tally.differences += [f"{out.parent.name}: {n}" for n in names if expected.get(n) != found.get(n)]
            tally.leftovers += [f"{out.parent.name}: {p.name}" for p in out.parent.iterdir() if p != out]
            tally.rounds += 1
            print(tally, flush=True)
    tally.seconds = round(time.monotonic() - started)
    return tally


def _undisturbed(work: Work) -> tuple[dict[str, bytes], float]:
    """What should come out, and how many seconds it takes."""
    out, started = work.folder / "undisturbed" / "out", time.monotonic()
    process = work.start(out)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return _contents(out), time.monotonic() - started


def _round(work: Work, out: Path, tally: Tally, chance: random.Random, takes: float) -> None:
    """Runs that are killed, each at a moment of its own, until one is through."""
    how = signal.SIGKILL if tally.rounds % 2 == 0 else signal.SIGINT
    for _ in range(MOST):
        done = _reached(_stages(out))
        tally.runs += 1
        tally.resumed += done
        process = work.start(out)
        if not _killed(process, _moment(out, done, chance, takes), how):
            _require_through(process, out)
            return
        tally.lost += not out.exists() and _reached(_stages(out)) < done
        last = "the final name" if out.exists() else _DETAIL.sub("", (_stages(out) or ["nothing"])[-1])
        tally.kills[last] = tally.kills.get(last, 0) + 1
        tally.signals[how.name] = tally.signals.get(how.name, 0) + 1
    raise RuntimeError(f"{out.parent.name} did not come through in {MOST} runs")


def _moment(out: Path, done: int, chance: random.Random, takes: float) -> Callable[[], bool]:
    """One more stage or two, the final name, or any time of an undisturbed run."""
    more = done + chance.randint(1, 2)
    end = time.monotonic() + chance.uniform(0.2, 1.0) * takes
    moments: list[Callable[[], bool]] = [
        lambda: _reached(_stages(out)) >= more,
        lambda: time.monotonic() > end,
        lambda: out.exists(),
    ]
    return chance.choices(moments, (6, 3, 1))[0]


def _require_through(process: subprocess.Popen[str], out: Path) -> None:
    """A run may refuse the output, but only because an earlier one was killed when all was done."""
    said = process.stderr.read() if process.stderr else ""
    if process.returncode != 0 and not (process.returncode == 2 and out.exists()):
        raise RuntimeError(f"{out.parent.name} ended with {process.returncode}: {said}")


def _killed(process: subprocess.Popen[str], moment: Callable[[], bool], how: signal.Signals) -> bool:
    """Kill a process at a moment; False if it ended before."""
    while process.poll() is None:
        if moment():
            process.send_signal(how)
            process.wait()
            return process.returncode not in (0, 2)
        time.sleep(_POLL)
    return False


def _stages(out: Path) -> list[str]:
    try:
        return list(json.loads((out.parent / f".{out.name}.fxcompress" / "journal.json").read_text())["stages"])
    except OSError:
        return []


def _reached(stages: list[str]) -> int:
    """How many stages are done; the last checkpoint, which took the place of those before it, for all of them."""
    steps = [int(what.removeprefix(_STEP)) for what in stages if what.startswith(_STEP)]
    return len(stages) - len(steps) + sum(steps) // _SAVE_EVERY


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=("compress", "distill"), default="compress")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tally = rounds(options.rounds, options.seconds, options.seed, options.command)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(tally), indent=1) + "\n")
    sys.exit(1 if tally.differences or tally.leftovers or tally.lost else 0)


if __name__ == "__main__":
    main()
