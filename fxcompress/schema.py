"""What the fields of ``fxcompress.json`` and of its report are: names, types and ranges.

A field that a later version adds to a mapping is passed over, where nothing could be misread by that: not in a row of a
report, not in a step, not in what says how to rebuild the model. A version that changes what a field means has another
``format``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    create_model,
)

from fxcompress.bounded import shown
from fxcompress.errors import CompressError
from fxcompress.files import is_plain
from fxcompress.report import FIGURES


def check(schema: type[BaseModel], values: Any, what: str) -> None:
    """Raise CompressError, naming ``what`` and the first field, unless the values are of the schema."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, (what, *problem["loc"])))
        wanted = re.sub(r"^(Input|String|Value) should", "it should", problem["msg"]).removeprefix("Value error, ")
        raise CompressError(f"{shown(where)}={shown(problem['input'])}: {wanted}") from error


def _file_name(name: str) -> str:
    if not is_plain(name):
        raise ValueError("it should be the name of a file beside this one")
    return name


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError("it should be the name of a class")
    return name


def _few(values: Any) -> Any:
    """Every field that is wrong becomes an object before the first one is told."""
    if isinstance(values, dict) and len(values) > _MOST_FIELDS:
        raise ValueError(f"it should have at most {_MOST_FIELDS:,} fields")
    return values


_MOST_FIELDS = 10_000
_Few = BeforeValidator(_few)
_OPEN = ConfigDict(extra="ignore", strict=True)
_CLOSED = ConfigDict(extra="forbid", strict=True)
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
_Texts = Annotated[dict[str, str], _Few]
_Hashes = Annotated[dict[Annotated[str, AfterValidator(_file_name)], _Digest], _Few]


class _Row(BaseModel):
    model_config = _CLOSED

    key: str
    role: str
    of: _Count
    asked: float
    got: _Count
    step: _Count
    why: str
    loss: float | None = None
    times: Annotated[dict[str, _Pair], _Few] | None = None


class _Law(BaseModel):
    model_config = _CLOSED

    name: str
    error: float | None
    tolerance: float
    why: str
    holds: bool


_figures: dict[str, Any] = dict.fromkeys(FIGURES, (_Count, ...))
_Figures = create_model(
    "_Figures", __config__=_OPEN, **_figures | {"parameters": (Annotated[_Count, Field(gt=0)], ...)}
)


class _Pass(BaseModel):
    model_config = _OPEN

    name: str
    options: dict[str, Any]
    rows: Annotated[list[Annotated[_Row, _Few]], FailFast()]
    laws: Annotated[list[Annotated[_Law, _Few]], FailFast()]
    before: _Figures  # type: ignore[valid-type]
    after: _Figures  # type: ignore[valid-type]


class _Run(BaseModel):
    """One call of the command line."""

    model_config = _OPEN

    model: str
    begins_at: _Count
    random: bool
    recipe: str
    versions: _Texts
    sha256: _Hashes


class _Notes(BaseModel):
    """What a caller noted, which may be anything, beside the runs."""

    model_config = _OPEN

    runs: Annotated[list[_Run], FailFast()] = []


class ReportFields(BaseModel):
    model_config = _OPEN

    passes: Annotated[list[_Pass], FailFast()]
    reload_error: float | None = None
    capture_error: float | None = None
    notes: _Notes = _Notes()


class _Base(BaseModel):
    """The class that the model was of, by its name in transformers, and its config."""

    model_config = _CLOSED

    name: Annotated[str, AfterValidator(_identifier)] = Field(alias="class")
    config: dict[str, Any] | None


class ManifestFields(BaseModel):
    """Steps and numbering are read by ``plan``, which knows how much they may stand for."""

    model_config = _OPEN

    format: int
    loads_with: Literal["transformers", "fxcompress", "graph"]
    why_not_transformers: str
    base: Annotated[_Base, _Few]
    steps: list[Any]
    numbering: dict[str, Any]
    sparse: dict[str, str] = {}  # the patterns of zeros, by the names of tensors in the files
    report: ReportFields
    versions: _Texts
    sha256: Annotated[_Hashes, Field(min_length=1)]
