"""Recipes: passes and calibration as a YAML file, or one pass as text; both are checked before any work.

    version: 1
    passes:
      - PruneFFN: {ratio: 0.25, score: activation}
      - RemoveLayers: {layers: [-2]}
    calibration: {file: text.txt, samples: 64, length: 512}

What a pass takes is read off its dataclass: a new pass needs nothing here. Text is only ever parsed, never evaluated,
and it stands for no more than it is long: YAML's tags and aliases are not read.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fxcompress import passes as registry
from fxcompress.bounded import parse_yaml, quoted, read_text, shown
from fxcompress.errors import CompressError
from fxcompress.pipeline import Pass

PASSES: dict[str, type[Pass]] = {name: getattr(registry, name) for name in registry.__all__}
MOST_RECIPE = 1 << 20  # bytes; lists of all tokens of a vocabulary fit
MOST_PASS = 1 << 17  # characters, as many as an argument of a command has
M = TypeVar("M", bound=BaseModel)
_STRICT = ConfigDict(extra="forbid", strict=True)


class Calibration(BaseModel):
    """Text that activations are observed on: a file, cut into ``samples`` pieces of ``length`` tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    file: str
    samples: int = Field(64, ge=1)
    length: int = Field(512, ge=2)
    batch_size: int = Field(4, ge=1)


class _File(BaseModel):
    """A recipe file, but for what is inside its passes."""

    model_config = _STRICT

    version: Literal[1]
    passes: list[dict[str, dict[str, Any] | None]]
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Recipe:
    """Checked passes in the order in which they run, and the calibration that they score by."""

    steps: tuple[Pass, ...]
    calibration: Calibration | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file; a calibration file is named relative to it. Raises CompressError, naming the entry."""
        path = Path(path)
        try:
            text = read_text(path, MOST_RECIPE)
        except CompressError as error:
            raise CompressError(f"the recipe {error}") from error
        try:
            recipe = cls.from_yaml(text)
        except CompressError as error:
            raise CompressError(f"{path}: {error}") from error
        if recipe.calibration is None:
            return recipe
        file = str(path.parent / recipe.calibration.file)
        return cls(recipe.steps, recipe.calibration.model_copy(update={"file": file}))

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """The recipe that a YAML text is. Raises CompressError, naming the entry, for anything else."""
        content = parse_yaml(text, MOST_RECIPE)
        if not isinstance(content, dict):
            raise CompressError("a recipe is a mapping with version: 1 and passes: [...]")
        file = _checked(_File, content, "recipe")
        if not file.passes:
            raise CompressError("the recipe has no pass")
        return cls(tuple(_entry(i, entry) for i, entry in enumerate(file.passes)), file.calibration)

    @classmethod
    def parse_pass(cls, text: str) -> Pass:
        """``PruneFFN(ratio=0.25)``: a name and options that are literals. Raises CompressError for anything else."""
        name, options = _parse_call(text)
        return make_pass(name, options)

    def passes(self) -> list[Pass]:
        return list(self.steps)

    def to_yaml(self) -> str:
        content: dict[str, Any] = {"version": 1, "passes": [{p.name: p.options()} for p in self.steps]}
        if self.calibration is not None:
            content["calibration"] = self.calibration.model_dump()
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass by its name and options. Raises CompressError for names, keys, types and values that are not there."""
    if name not in PASSES:
        raise CompressError(
            f"there is no pass {quoted(name)}{_did_you_mean(name, list(PASSES))}; there are {', '.join(PASSES)}"
        )
    checked = _checked(_schema(PASSES[name]), options, name)
    try:
        return PASSES[name](**{key: getattr(checked, key) for key in options})
    except CompressError as error:
        raise CompressError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error


def _schema(kind: type[Pass]) -> type[BaseModel]:
    """The fields of a pass with their types. A score is a name here: code does not fit into a recipe."""
    types = get_type_hints(kind, localns={"Score": str, "Scorer": str})
    wanted = {f.name: (types[f.name], ... if f.default is MISSING else f.default) for f in fields(kind) if f.init}
    return create_model(kind.__name__, __config__=_STRICT, **wanted)  # type: ignore[call-overload]


def _checked(schema: type[M], values: Mapping[str, Any], what: str) -> M:
    """Values against a schema, as JSON: lists stand for tuples there, and numbers are not made from text."""
    try:
        return schema.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[:_MOST_PROBLEMS]
        raise CompressError("; ".join(_say(problem, what, list(schema.model_fields)) for problem in first)) from error
    except (TypeError, ValueError, RecursionError) as error:  # bytes, sets, numbers of thousands of digits
        raise CompressError(f"{what}: options are texts, numbers, true, false and lists of them: {error}") from error


_MOST_PROBLEMS = 3  # that are said at once


def _say(problem: Mapping[str, Any], what: str, known: list[str]) -> str:
    *outer, key = problem["loc"] or ("options",)
    where = shown(".".join(map(str, (what, *outer))))
    if problem["type"] == "extra_forbidden":
        known = list(Calibration.model_fields) if outer else known
        return f"{where} has no option {quoted(key)}{_did_you_mean(str(key), known)}; it has {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} needs {key}"
    wanted = problem["msg"].replace("Input", "it").replace("array", "list").replace("an object", "a mapping")
    return f"{where}.{shown(str(key))}={quoted(problem['input'])}: {wanted}"


def _entry(i: int, entry: Mapping[str, dict[str, Any] | None]) -> Pass:
    if len(entry) != 1:
        raise CompressError(f"passes[{i}] names {len(entry)} passes; each entry is one, - PruneFFN: {{ratio: 0.25}}")
    ((name, options),) = entry.items()
    try:
        return make_pass(name, options or {})
    except CompressError as error:
        raise CompressError(f"passes[{i}]: {error}") from error


def _parse_call(text: str) -> tuple[str, dict[str, Any]]:
    wrong = CompressError(f"{quoted(text)} is not a pass: write a name and options, 'PruneFFN(ratio=0.25)'")
    if len(text) > MOST_PASS:
        raise wrong
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise wrong
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:  # the last: nested too deeply
        raise wrong from error
    if len(options) != len(call.keywords):  # **options, or a name twice
        raise wrong
    return call.func.id, options


def _did_you_mean(name: str, known: list[str]) -> str:
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name[:100].lower(), lowered, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(lowered[n] for n in near)}?)" if near else ""
