"""A student is to learn from a teacher, and one of them, the text, the disk or the run is not what it should be."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fxcompress.journal import folder_of
from tests.mishaps.disks import free, full_at
from tests.mishaps.place import JOURNAL, RESULT, Mishap, Place
from tests.mishaps.stops import stopped

QUICK = ("--length", 8, "--batch-size", 2, "--steps", 4, "--save-every", 2, "--log-every", 1, "--device", "cpu")


def distils(*options: object) -> Callable[[Place], object]:
    """``fxcompress distill``, by a teacher that is a copy of the student unless options say another."""

    def ask(place: Place) -> object:
        named = () if "--teacher" in options or "--correct" in options else ("--teacher", teacher(place))
        return place.shell("distill", place.model, *named, "--data", place.text, "-o", place.out, *QUICK, *options)

    return ask


def under(context: Callable[[], contextlib.AbstractContextManager], *options: object) -> Callable[[Place], object]:
    def ask(place: Place) -> object:
        with context():
            return distils(*options)(place)

    return ask


def teacher(place: Place) -> Path:
    return place.root / "teacher"


def copied(place: Place, then: Callable[[Place], object] = lambda place: None) -> None:
    shutil.copytree(place.model, teacher(place))
    then(place)


def with_teacher(then: Callable[[Place], object] = lambda place: None) -> Callable[[Place], None]:
    return partial(copied, then=then)


def other_words(place: Place) -> None:
    file = teacher(place) / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7": 7,', '"w7": 90,').replace('"w90": 90,', '"w90": 7,'))


def fewer_words(place: Place) -> None:
    """A teacher whose table of tokens has other rows."""
    file = teacher(place) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 80}))


def cut_weights(place: Place) -> None:
    file = teacher(place) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def half_done(then: Callable[[Place], object] = lambda place: None) -> Callable[[Place], None]:
    """A run that was stopped behind its first checkpoint, and what happened to what it left."""

    def make(place: Place) -> None:
        copied(place)
        with stopped(1):
            assert distils()(place).exit_code == 130
        then(place)

    return make


def checkpoint(place: Place) -> Path:
    return next((folder_of(place.out) / "training").glob("checkpoint-*"))


def damaged(place: Place) -> None:
    file = checkpoint(place) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


case = partial(Mishap, "distilling", make=with_teacher(), ask=distils())

MISHAPS = (
    case("a student and its teacher", ends="0", left=RESULT),
    case("no teacher at that place", "nowhere is neither a path nor", ask=distils("--teacher", "nowhere")),
    case("a teacher and none", "by one of --teacher DIR and --correct", ask=distils("--teacher", "x", "--correct")),
    case("a teacher of other words", "differ", make=with_teacher(other_words)),
    case("a teacher of fewer words", "80", make=with_teacher(fewer_words)),
    case("a teacher cut short", "model.safetensors", make=with_teacher(cut_weights)),
    case("a text shorter than a step", "rows and a step takes 60", ask=distils("--batch-size", 60)),
    case("a text that is none", "cannot be read", make=with_teacher(lambda p: p.text.write_bytes(b"\xff\xfe\xff"))),
    case("a text without a token", "less than one window of 8", make=with_teacher(lambda p: p.text.write_text(""))),
    case("the top of another divergence", "goes with forward_kl", ask=distils("--top-k", 3, "--divergence", "jsd")),
    case("a learning rate of nought", "learning_rate=0.0 is not a positive number", ask=distils("--lr", 0)),
    case("a device that there is not", "device", ask=distils("--device", "cuda:77")),
    case("FP8 on a CPU", "FP8 needs an NVIDIA GPU of compute capability 8.9", ask=distils("--fp8")),
    case("layers of states that there are not", "99", ask=distils("--states", 1, "--state-pair", "99:0")),
    case(
        "an output that holds something",
        "exists and is not an empty directory",
        make=with_teacher(lambda p: (p.out.mkdir(), (p.out / "thesis.txt").write_text("the only copy"))),
    ),
    case("too little space for checkpoints", "MB are free", ask=under(partial(free, 1000))),
    case(
        "a disk that fills up at the second checkpoint",
        "No space left on device",
        make=half_done(),
        ask=under(partial(full_at, "fxcompress.distillation.checkpoints._on_disk")),
        left=JOURNAL,
    ),
    case("interrupted behind a checkpoint", "goes on", ask=under(partial(stopped, 1)), ends="130", left=JOURNAL),
    case("gone on with behind a checkpoint", make=half_done(), ends="0", left=RESULT),
    case("gone on with by other options", "another request", make=half_done(), ask=distils("--lr", 1e-5), left=JOURNAL),
    case("a checkpoint that was damaged", "not as it was written", make=half_done(damaged), left=JOURNAL),
    case("steps beyond all numbers", "", ask=distils("--lr", 1e38, "--warmup", 0)),
)
