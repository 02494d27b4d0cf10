"""Text of unknown origin: read within bounds, or refused by a CompressError that names the file.

    bytes on disk  --at most so many, UTF-8-->  text  --JSON, or plain YAML-->  None, bool, int, float, str, list, dict

Neither size nor nesting of what is read can exhaust memory or stack, and nothing in it is evaluated: of YAML there are
no tags, which make objects, and no aliases, of which nine lines can stand for a billion values.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fxcompress.errors import CompressError

_LONGEST = 120  # characters that an error shows of a name
_LONGEST_ERROR = 500  # characters of one of another library's
_SHORT = reprlib.Repr()
_SHORT.maxstring = _LONGEST


def read_text(file: Path, at_most: int) -> str:
    """A UTF-8 file of at most so many bytes. Raises CompressError for larger ones, other bytes and what is no file."""
    try:
        if not file.is_file():  # a pipe or a device has no end
            raise CompressError(f"{file} cannot be read: it is {'no file' if file.exists() else 'missing'}")
        with file.open("rb") as stream:
            content = stream.read(at_most + 1)
        if len(content) > at_most:
            raise CompressError(f"{file} cannot be read: it is larger than {at_most:,} bytes")
        return content.decode("utf-8-sig")  # editors of Windows put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise CompressError(f"{file} cannot be read: {error}") from error


def read_json(file: Path, at_most: int) -> Any:
    """The value in a JSON file of at most so many bytes. Raises CompressError, also where an object has a key twice."""
    text = read_text(file, at_most)
    try:
        return parse_json(text)
    except CompressError as error:
        raise CompressError(f"{file} is not JSON: {error}") from error


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for. Raises CompressError for anything else and for a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise CompressError("it is nested too deeply") from error
    except CompressError:
        raise
    except ValueError as error:  # no JSON, or numbers of thousands of digits
        raise CompressError(str(error)) from error


def parse_yaml(text: str, at_most: int) -> Any:
    """The value that a YAML text of at most so many characters stands for. Raises CompressError for anything else."""
    if len(text) > at_most:
        raise CompressError(f"not YAML that is read here: it is longer than {at_most:,} characters")
    try:
        return yaml.load(text, _PlainLoader)  # derived from the SafeLoader
    except RecursionError as error:
        raise CompressError("not YAML that is read here: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise CompressError(f"not YAML: {one_line(error)}") from error


def shown(name: Any) -> str:
    """A name out of a file as an error shows it: in one line, not too long, and without what moves a cursor."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST else quoted(name)


def quoted(value: Any) -> str:
    """A value as Python writes it, with the middle left out where it is long."""
    return _SHORT.repr(value)


def one_line(error: BaseException) -> str:
    """What an error of a library says of a text, which it may quote, in one line that can be printed."""
    text = " ".join(str(error).split())[:_LONGEST_ERROR]
    return "".join(letter if letter.isprintable() else "?" for letter in text) or type(error).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two values they take: no file of ours or of transformers has such a key."""
    out = dict(pairs)
    if len(out) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise CompressError(f"it has {shown(twice)} twice")
    return out


class _PlainLoader(yaml.SafeLoader):
    """YAML as a way to write JSON."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"*{event.anchor} is an alias, which is not read here")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"{event.tag} is a tag, which is not read here")
        return super().compose_node(parent, index)


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", list("yYnNtTfFoO")),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
# Dates, numbers to the base of 60 and numbers of any length are texts.
_PlainLoader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _SCALARS.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
