"""Results that were changed after they were written."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fxcompress
from fxcompress.manifest import MANIFEST
from tests.mishaps.files import WEIGHTS, flip
from tests.mishaps.place import Mishap, Place


@functools.cache
def _result() -> Path:
    """A whole result of the tiny model, in two files; never changed."""
    place = Place.fresh(Path(tempfile.mkdtemp(prefix="mishaps-")))
    assert place.compress("--max-shard-size", "60KB").exit_code == 0
    return place.out


def broken(change: Callable[[Path], object]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        shutil.copytree(_result(), place.root / "small")
        change(place.root / "small")

    return make


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / MANIFEST).read_text())
        change(content)
        (folder / MANIFEST).write_text(json.dumps(content))

    return broken(edit)


def load(place: Place) -> object:
    return fxcompress.load(place.root / "small") and None


def again(place: Place) -> object:
    """Compress the result once more."""
    place.model = place.root / "small"
    return place.compress()


def verify(place: Place) -> object:
    return place.shell("verify", place.model, place.root / "small")


def report(place: Place) -> object:
    return place.shell("report", place.root / "small")


def first(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def swap(folder: Path) -> None:
    a, b, *_ = sorted(folder.glob("*.safetensors"))
    contents = a.read_bytes(), b.read_bytes()
    a.write_bytes(contents[1])
    b.write_bytes(contents[0])


def link_out(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / "manifest.json")
    (folder / MANIFEST).symlink_to(folder.parent / "manifest.json")


flipped = broken(lambda folder: flip(first(folder), -100))
other_header = broken(lambda folder: flip(first(folder), 20))
case = partial(Mishap, "results", ends="CompressError", ask=load)
shell = partial(Mishap, "results")

MISHAPS = (
    case("a bit of a value flipped", "is not the file that was saved: its hash differs", flipped),
    shell("a bit of a value flipped, verified", "", flipped, verify, ends="1"),
    shell("a bit of a value flipped, compressed again", "its hash differs", flipped, again),
    case("a bit of a header flipped", "its hash differs", other_header),
    case("two files swapped", "its hash differs", broken(swap)),
    case("a file missing", ".safetensors is missing", broken(lambda f: first(f).unlink())),
    case("a file cut short", "its hash differs", broken(lambda f: os.truncate(first(f), 100))),
    case(
        "a file too many",
        "is not among the weights that were saved: remove it",
        broken(lambda f: shutil.copyfile(first(f), f / WEIGHTS)),
    ),
    case("no manifest", "holds no fxcompress.json: it is not a result", broken(lambda f: (f / MANIFEST).unlink())),
    case("a manifest cut short", "is not JSON", broken(lambda f: os.truncate(f / MANIFEST, 500))),
    case("a manifest that is a link out of the folder", "is a link to a file outside its directory", broken(link_out)),
    case(
        "a manifest of a later format",
        "has format 9; this version of fxcompress reads format 1",
        manifest(lambda m: m.update(format=9)),
    ),
    case(
        "a manifest with another hash",
        "its hash differs",
        manifest(lambda m: m["sha256"].update({min(m["sha256"]): "0" * 64})),
    ),
    case("a manifest without hashes", "manifest.sha256={}", manifest(lambda m: m["sha256"].clear())),
    case(
        "a manifest with files elsewhere",
        "it should be the name of a file beside this one",
        manifest(lambda m: m["sha256"].update({"../x.safetensors": "0" * 64})),
    ),
    case(
        "a manifest of a class that is none",
        "manifest.base.class=os.system: it should be the name of a class",
        manifest(lambda m: (m["base"].update({"class": "os.system"}), m.update(loads_with="fxcompress"))),
    ),
    case(
        "a manifest with a step that cannot be",
        "kept indices of shape (1000,) for a group of (80,)",
        manifest(
            lambda m: (
                m["steps"][0]["keep"].update({next(iter(m["steps"][0]["keep"])): "0-999"}),
                m.update(loads_with="fxcompress"),
            )
        ),
    ),
    shell(
        "a manifest with a step that cannot be, verified",
        "",
        manifest(lambda m: m["steps"][0]["keep"].update({next(iter(m["steps"][0]["keep"])): "0-999"})),
        verify,
        ends="1",
    ),
    shell(
        "a report without a field",
        "cannot be read: manifest.report.passes=",
        manifest(lambda m: m["report"].pop("passes")),
        report,
    ),
    shell(
        "what is no result, verified",
        "it is not a result of fxcompress",
        ask=lambda p: p.shell("verify", p.model, p.model),
    ),
    case(
        "a folder that is not there",
        "holds no fxcompress.json: it is not a result",
        ask=lambda p: fxcompress.load(p.root / "nowhere"),
    ),
)
