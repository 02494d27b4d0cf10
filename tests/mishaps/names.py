"""Names of folders that are unusual: they work, from end to end, for the model and for the output."""

from __future__ import annotations

from functools import partial

from tests.mishaps.place import RESULT, Mishap, Place

ODD = {
    "spaces": "  my model ",
    "letters of many languages": "模型 ñ ünïcode ☃",
    "a new line": "one\ntwo",
    "quotes": 'it\'s "quoted" `here` $HOME',
    "markup": "[bold red]x %s {y} *?",
    "a leading dash": "-x --random",
    "bytes that are no UTF-8": b"caf\xe9".decode(errors="surrogateescape"),
    "a backslash": "a\\b",
    "a comma and a tab": "a,b\tc",
}


def rename(place: Place, name: str) -> None:
    place.model = place.model.rename(place.root / name)
    place.out = place.out.with_name(name)


case = partial(Mishap, "names")

MISHAPS = (
    *(case(f"a name with {what}", "", partial(rename, name=name), ends="0", left=RESULT) for what, name in ODD.items()),
    case("a name of 250 letters", "File name too long", lambda p: setattr(p, "out", p.out.with_name("x" * 250))),
    case(
        "an output under a folder that is not there yet",
        "",
        lambda p: setattr(p, "out", p.out / "a" / "b"),
        ends="0",
        left=RESULT,
    ),
)
