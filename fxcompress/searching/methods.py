"""The methods of a search by name, for those who choose one by its name: what each is asked, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fxcompress.errors import CompressError
from fxcompress.searching.from_files import Request
from fxcompress.searching.minipuzzle import MiniPuzzle
from fxcompress.searching.profile import Name, Profile
from fxcompress.searching.puzzle import Puzzle
from fxcompress.searching.run import Request as BySizes

Method = Literal["sizes", "minipuzzle", "puzzle"]
_OWN: dict[str, tuple[Method, ...]] = {  # options that not all methods have
    "profile": ("sizes",),
    "tensor_parallel": ("sizes",),
    "layer_order": ("sizes",),
    "metric": ("puzzle",),
    "apart": ("puzzle",),
}


def request_by(method: Method, space: Any, given: Mapping[str, Any]) -> Request:
    """What is searched for. ``given``: options by name, None for one that is left to its default.

    Raises CompressError for an option that the method does not have, and for what can be refused before any work.
    """
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if method not in _OWN.get(name, (method,)):
            which = " and ".join(_OWN[name])
            raise CompressError(f"{name} is an option of a search by {which}, not of one by {method}: leave it away")
    request = _BY[method](space, options)
    request.check()
    return request


def _by_sizes(space: Any, options: dict[str, Any]) -> Request:
    name: Name = options.pop("profile", "fxcompress")
    return BySizes(axes=space, profile=Profile(name, options.pop("tensor_parallel", 1)), **options)


_BY = {
    "sizes": _by_sizes,
    "minipuzzle": lambda space, options: MiniPuzzle(space=space, **options),
    "puzzle": lambda space, options: Puzzle(space=space, **options),
}
