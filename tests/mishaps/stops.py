"""Runs that are stopped, that meet another one, or that find a journal which is not theirs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fxcompress
from fxcompress import verify
from fxcompress.journal import Journal, folder_of
from fxcompress.verify import Law
from tests.mishaps.place import HALVED, JOURNAL, RESULT, Mishap, Place, module

SMALL = ("--max-shard-size", "60KB")  # two files


@contextlib.contextmanager
def stopped(stages: int) -> Iterator[None]:
    """Interrupt the run when it has written so many stages into its journal."""
    write, written = Journal._write, []

    def writing(self: Journal) -> None:
        write(self)
        written.append(self)
        if len(written) == stages:
            raise KeyboardInterrupt

    with patch.object(Journal, "_write", writing):
        yield


@contextlib.contextmanager
def stopped_in(function: str) -> Iterator[None]:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with patch(function, stop):
        yield


def under(context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[Place], object]:
    def ask(place: Place) -> object:
        with context():
            return place.compress(*SMALL)

    return ask


def after(stages: int, then: Callable[[Place], object] = lambda place: None) -> Callable[[Place], None]:
    """A run that was stopped earlier, and what happened to what it left."""

    def make(place: Place) -> None:
        with stopped(stages):
            assert place.compress(*SMALL).exit_code == 130
        then(place)

    return make


def go_on(place: Place) -> object:
    return place.compress(*SMALL)


def go_on_without_proof(place: Place) -> object:
    """What was proven is not proven again."""
    with patch.object(verify, "prune_equals_mask", side_effect=AssertionError("a finished pass was proven again")):
        return place.compress(*SMALL)


def journal(place: Place) -> Path:
    return folder_of(place.out) / "journal.json"


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        content = json.loads(journal(place).read_text())
        change(content)
        journal(place).write_text(json.dumps(content))

    return edit


def other_text(content: str) -> Callable[[Place], object]:
    return lambda place: journal(place).write_text(content)


def other_model(place: Place) -> None:
    config = place.model / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


def damaged_shard(place: Place) -> None:
    shard = min((folder_of(place.out) / "result").glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def while_another_writes(place: Place) -> object:
    folder_of(place.out).mkdir()
    with (folder_of(place.out) / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        return place.compress()


def saving_interrupted(place: Place) -> object:
    small = fxcompress.apply(module(), [HALVED])
    with stopped_in("fxcompress.export.save.write_shard"):
        return small.save_pretrained(place.out)


def failing() -> contextlib.AbstractContextManager:
    return patch.object(verify, "prune_equals_mask", lambda *_: Law("prune equals mask", 0.5, 1e-3))


def finished_but_not_tidied(place: Place) -> None:
    """Stopped between the last rename and the removal of the journal."""
    with patch("fxcompress.journal.shutil.rmtree"):
        assert place.compress(*SMALL).exit_code == 0


case = partial(Mishap, "stops", ends="130", left=JOURNAL)
goes_on = partial(Mishap, "stops", ends="0", left=RESULT, ask=go_on)

MISHAPS = (
    case(
        "interrupted while planning",
        "interrupted",
        ask=under(partial(stopped_in, "fxcompress.run.compress_opened")),
        left="nothing",
    ),
    case("interrupted after the checks", "checks; the same command goes on from there", ask=under(partial(stopped, 1))),
    case(
        "interrupted after a pass", "checks, pass 0 PruneFFN; the same command goes on", ask=under(partial(stopped, 2))
    ),
    case("interrupted between weights", "weights model-00001-of-", ask=under(partial(stopped, 3))),
    case(
        "interrupted before the report",
        "reload; the same command goes on",
        ask=under(partial(stopped_in, "fxcompress.report.Report.write")),
    ),
    case(
        "interrupted before anything is finished",
        "interrupted",
        ask=under(partial(stopped_in, "fxcompress.compressed.checks")),
        left="nothing",
    ),
    case(
        "interrupted when all is written",
        "interrupted, the result is whole, in",
        ask=under(partial(stopped_in, "fxcompress.cli.compress._show")),
        left=RESULT,
    ),
    case("interrupted while a model is saved", "", ask=saving_interrupted, ends="KeyboardInterrupt", left="nothing"),
    case(
        "a proof that fails",
        "prune equals mask: FAILS, error 0.5 (at most 0.001). The result is withheld",
        ask=under(failing),
        ends="3",
        left="nothing",
    ),
    goes_on("gone on with after the checks", make=after(1)),
    goes_on("gone on with after a pass", make=after(2), ask=go_on_without_proof),
    goes_on("gone on with between weights", make=after(4), ask=go_on_without_proof),
    goes_on("a journal cut short", make=after(3, lambda p: journal(p).write_text(journal(p).read_text()[:100]))),
    goes_on("a journal of no bytes", make=after(3, other_text(""))),
    goes_on("a journal that is a list", make=after(3, other_text("[]"))),
    goes_on("a journal nested a million deep", make=after(3, other_text("[" * 10**6))),
    goes_on(
        "a journal with a stage emptied", make=after(3, edited(lambda c: c["stages"].update({"pass 0 PruneFFN": {}})))
    ),
    goes_on(
        "a journal with another choice of neurons",
        make=after(
            3,
            edited(
                lambda c: c["stages"]["pass 0 PruneFFN"]["step"]["keep"].update(
                    {"model.layers.0.mlp.gate_proj.weight[0]": "20-79"}
                )
            ),
        ),
    ),
    goes_on("a journal of other bytes", make=after(3, lambda p: journal(p).write_bytes(b"\xff\xfe"))),
    goes_on("a finished file that was damaged", make=after(3, damaged_shard)),
    goes_on("a folder among the finished files", make=after(3, lambda p: (folder_of(p.out) / "result" / "x").mkdir())),
    goes_on("the finished files lost", make=after(3, lambda p: shutil.rmtree(folder_of(p.out) / "result"))),
    Mishap(
        "stops",
        "a journal of another request",
        "has an unfinished run of another request",
        after(3),
        Place.compress,
        left=JOURNAL,
    ),
    Mishap(
        "stops",
        "a journal of another model",
        "has an unfinished run of another request",
        after(3, other_model),
        go_on,
        left=JOURNAL,
    ),
    Mishap(
        "stops", "another run is writing the output", "another run is writing", ask=while_another_writes, left=JOURNAL
    ),
    Mishap(
        "stops", "finished but not tidied up", "exists and is not an empty directory", finished_but_not_tidied, go_on
    ),
)
