"""Disks that are full, take no more, or may not be written to."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import fxcompress
from tests.mishaps.place import HALVED, JOURNAL, Mishap, Place, module


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to let a file grow further, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def free(size: int) -> Iterator[None]:
    with patch.object(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(size, 0, size)):
        yield


@contextlib.contextmanager
def full_at(function: str) -> Iterator[None]:
    """The disk fills up when a function writes."""

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch(function, fill):
        yield


def under(context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[Place], object]:
    def ask(place: Place) -> object:
        with context():
            return place.compress()

    return ask


def saved_under(context: Callable[[], contextlib.AbstractContextManager]) -> Callable[[Place], object]:
    def ask(place: Place) -> object:
        small = fxcompress.apply(module(), [HALVED])
        with context():
            return small.save_pretrained(place.out)

    return ask


case = partial(Mishap, "disks")

MISHAPS = (
    case("too little space, seen beforehand", "0.0 MB are free", ask=under(partial(free, 1000))),
    case(
        "too little space for what is saved",
        "0.0 MB are free",
        ask=saved_under(partial(free, 1000)),
        ends="CompressError",
    ),
    case(
        "a disk that fills up at the weights",
        "No space left on device",
        ask=under(partial(full_at, "fxcompress.export.save.write_shard")),
        left=JOURNAL,
    ),
    case(
        "a disk that fills up at the report",
        "No space left on device",
        ask=under(partial(full_at, "fxcompress.report.Report.write")),
        left=JOURNAL,
    ),
    case(
        "a disk that takes the journal but not the weights",
        "File too large",
        ask=under(partial(no_file_above, 30_000)),
        left=JOURNAL,
    ),
    case("a disk that takes nothing", "cannot be written to: File too large", ask=under(partial(no_file_above, 100))),
    case(
        "a disk that fills up while a model is saved",
        "No space left on device",
        ask=saved_under(partial(full_at, "fxcompress.export.save.write_shard")),
        ends="OSError",
    ),
    case(
        "a folder in which nothing can be made",
        "/proc cannot be written to",
        lambda p: setattr(p, "out", Path("/proc/out")),
    ),
)
