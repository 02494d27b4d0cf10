"""The arguments that several commands take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from torch import Tensor

from fxcompress.errors import CompressError

# text, not a path: ./x is a directory where org/name may be the id of a model
MODEL = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's directory, a config.json, a result, or an id on the hub")
]
REVISION = Annotated[str | None, typer.Option(metavar="REV", help="Of a hub id: a branch, a tag or a commit")]


def read_examples(texts: Sequence[str]) -> dict[str, Tensor] | None:
    """``input_ids=2x64`` is a tensor of ones of that shape; only the shape matters to capture."""
    return dict(map(_read_example, texts)) or None


def _read_example(text: str) -> tuple[str, Tensor]:
    match = re.fullmatch(r"(\w+)=(\d{1,6}(?:x\d{1,6})*)", text)
    if match is None:
        raise CompressError(f"--example {text!r} is not of the form input_ids=2x64")
    return match[1], torch.ones([int(n) for n in match[2].split("x")], dtype=torch.long)
