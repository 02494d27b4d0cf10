"""Where a mishap happens, how it is carried out, and the laws over all of them.

nothing but a CompressError      no traceback reaches the user, whatever was asked
nothing half                     the final name holds a whole result, or what it held before
nothing else                     no file is changed, made or lost but the output and the journal beside it
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from fxcompress.cli import app
from fxcompress.errors import CompressError, ProofError
from fxcompress.journal import folder_of
from fxcompress.manifest import MANIFEST
from fxcompress.passes import PruneFFN
from tests import models

FFN = "PruneFFN(ratio=0.25)"
HALVED = PruneFFN(ratio=0.5)
WORDS = "w4 w5 w6 w7 " * 20
NOTHING, JOURNAL, RESULT = "nothing", "the journal", "the result"


@dataclass
class Place:
    """A model's directory, a text and a folder for the output, all one's own. ``ask`` may move the model or output."""

    root: Path
    model: Path
    out: Path

    @classmethod
    def fresh(cls, root: Path) -> Place:
        model = shutil.copytree(_checkpoint(), root / "model")
        (root / "text.txt").write_text(WORDS)
        (root / "there").mkdir()
        return cls(root, model, root / "there" / "out")

    @property
    def text(self) -> Path:
        return self.root / "text.txt"

    def shell(self, *arguments: object) -> Result:
        """The command line in this process; stdout and stderr apart."""
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))

    def compress(self, *options: object) -> Result:
        """``fxcompress compress MODEL -o OUT``, with one pass unless options say what to do."""
        said = any(option in ("--pass", "--recipe") for option in options)
        return self.shell("compress", self.model, "-o", self.out, *(() if said else ("--pass", FFN)), *options)


@dataclass(frozen=True)
class Mishap:
    """One thing that goes wrong. What is ``asked`` gives a shell's result, or a value or an error of Python."""

    kind: str
    name: str
    said: str = ""
    make: Callable[[Place], object] = lambda place: None
    ask: Callable[[Place], object] = Place.compress
    ends: str = "2"  # the exit code of a command, "done", or the class of the error that Python raises
    left: str = NOTHING

    @property
    def slow(self) -> bool:
        """Does it capture a model with its weights, or run to the end?"""
        return self.works or self.left != NOTHING or self.kind in ("models", "stops", "distilling")

    @property
    def works(self) -> bool:
        return self.ends in ("0", "done")


@dataclass(frozen=True)
class Outcome:
    """What came of a mishap: how it ended, what was said, what is on the disk, and which laws do not hold."""

    ends: str
    said: str
    left: str
    broken: tuple[str, ...]

    def unlike(self, mishap: Mishap) -> list[str]:
        """How it differs from what the mishap says of itself, besides the laws."""
        found = [*self.broken]
        if self.ends != mishap.ends:
            found.append(f"ends with {self.ends}, not {mishap.ends}: {self.said}")
        if mishap.said not in self.said:
            found.append(f"says {self.said!r}, not {mishap.said!r}")
        if self.left != mishap.left:
            found.append(f"leaves {self.left}, not {mishap.left}")
        return found


def carry_out(mishap: Mishap, root: Path) -> Outcome:
    """Let it happen in an empty folder."""
    place = Place.fresh(root)
    mishap.make(place)
    before = _hashes(root)
    ends, said, broken = _asked(mishap, place)
    after = _hashes(root)
    left = _left(place, before)
    broken += [f"{path} is {what}" for path, what in _changes(before, after, place, left == RESULT)]
    if left == RESULT and ends not in ("0", "done", "130"):
        broken.append("a result under the final name, though it ended otherwise")
    return Outcome(ends, said.replace(str(root), "…"), left, tuple(broken))


def works_again(root: Path) -> str:
    """What a correct run into the same folder says against it; nothing where it succeeds."""
    place = Place(root, root / "whole", root / "there" / "out")
    if os.path.lexists(place.out) or os.path.lexists(folder_of(place.out)):
        return ""  # the output is taken, or kept for the run that goes on
    shutil.copytree(_checkpoint(), place.model)
    result = place.compress()
    return "" if result.exit_code == 0 else result.stderr


def _asked(mishap: Mishap, place: Place) -> tuple[str, str, list[str]]:
    """How it ended, what was said, and what of that no user should ever see."""
    try:
        result = mishap.ask(place)
    except (CompressError, ProofError, OSError, KeyboardInterrupt) as error:
        return type(error).__name__, "\n".join([str(error), *getattr(error, "__notes__", ())]), _too_long(str(error))
    except Exception as error:
        return type(error).__name__, str(error), [f"{type(error).__name__} reaches the user: {error}"]
    if not isinstance(result, Result):
        return "done", "" if result is None else str(result), []
    broken = ["a traceback"] if "Traceback" in result.output else []
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        broken.append(f"{type(result.exception).__name__} reaches the user: {result.exception}")
    said = result.stderr.partition("error: ")[2] or result.stderr
    return str(result.exit_code), said.strip(), broken


def _too_long(said: str) -> list[str]:
    lines, most = (
        len(said.splitlines()),
        4 if "cannot be captured" in said else 2,
    )  # which shows the place in the source
    return [] if lines <= most else [f"it says {lines} lines"]


def _hashes(root: Path) -> dict[str, str]:
    """Every path below a folder, with what it is or holds."""
    return {str(path.relative_to(root)): _digest(path) for path in sorted(root.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def _changes(before: dict[str, str], after: dict[str, str], place: Place, whole: bool) -> list[tuple[str, str]]:
    """What happened to files that are neither the journal nor, where there is a whole result, the output."""
    allowed = [folder_of(place.out), *([place.out] if whole else [])]
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    ours = {path for path in changed if any((place.root / path).is_relative_to(folder) for folder in allowed)}
    if whole:  # folders on the way to it
        ours |= {path for path in changed if place.out.is_relative_to(place.root / path)}
    what = lambda path: "lost" if path not in after else "changed" if path in before else "new"  # noqa: E731
    return [(path, what(path)) for path in sorted(changed - ours)]


def _left(place: Place, before: dict[str, str]) -> str:
    """What is there for the next run, or for the user: a whole result only if it was not there before."""
    if os.path.isfile(place.out / MANIFEST) and str((place.out / MANIFEST).relative_to(place.root)) not in before:
        return RESULT
    return JOURNAL if os.path.isdir(folder_of(place.out)) else NOTHING


@functools.cache
def _checkpoint() -> Path:
    """A tiny model of one layer with a tokenizer of one word an id; never changed."""
    folder = Path(tempfile.mkdtemp(prefix="mishaps-"))
    module().save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def module(name: str = "llama", **fields: Any) -> Any:
    """A tiny model of one layer in memory."""
    config = models.config(name)
    config.num_hidden_layers = 1
    for field, value in fields.items():
        setattr(config, field, value)
    return models.perturb(AutoModelForCausalLM.from_config(config).eval())
