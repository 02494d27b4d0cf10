"""What a result differs in from the models of its class, as data that is checked before anything is built.

A ``config.json`` of ours is data from a stranger. It names classes by nothing but a ``model_type`` of transformers;
the rest is paths of modules that the class itself builds, and numbers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fxcompress.errors import CompressError

LARGEST = 1 << 26  # of a size: no dim of a language model comes near it

Size = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Number = Size | Annotated[float, Field(strict=True, ge=0, le=LARGEST)]
Value = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$", max_length=100)]
Path = Annotated[str, Field(pattern=r"^(\w+(\.\w+)*)?$", max_length=300)]
Ranges = Annotated[str, Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Narrow(Strict):
    """A projection that holds only some of its positions: it reads ``reads`` of its input, and its outputs stand at
    ``gives`` of ``width``, zeros elsewhere. None: all of them."""

    reads: Ranges | None = None
    gives: Ranges | None = None
    width: Annotated[int, Field(strict=True, ge=0, le=LARGEST)] = 0


class Absent(Strict):
    """A module that is gone: where its result stood, zeros of the input's shape, or the input itself.

    ``gives``: "hidden" for a tensor; for a tuple what stands at each place of it. ``counts``: what of its layer's cache
    it kept up to date, a length ("tokens"), a recurrent state ("state"), or both.
    """

    law: Literal["zero", "pass"]
    gives: Literal["hidden"] | tuple[Literal["hidden"] | None, ...] = "hidden"
    counts: tuple[Literal["tokens", "state"], ...] = ()


class Stored(Strict):
    """A tensor that the class computes from sizes and the checkpoint holds instead."""

    shape: tuple[Size, ...]
    dtype: Literal["float32", "float64", "bfloat16", "float16", "int64"]

    @field_validator("shape")
    @classmethod
    def _is_small(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) > 8 or math.prod(shape) > LARGEST:
            raise ValueError(f"a stored tensor of shape {shape} is larger than any that a class derives from sizes")
        return shape


class Spec(Strict):
    """``base``: the model_type whose class builds the model; the path ``""`` stands for the whole model.

    configs: fields that differ for a module, in a config of its own. arguments: integers that a module is constructed
    with. narrow, absent: see there. buffers: tensors that are stored. constants: numbers that a class derives from
    sizes. experts: "eager" where sizes fit no kernel that multiplies all experts at once.
    """

    base: Annotated[str, Field(pattern=r"^[\w-]+$", max_length=100)]
    configs: dict[Path, dict[Name, Number]] = {}
    arguments: dict[Path, dict[Name, Size]] = {}
    narrow: dict[Path, Narrow] = {}
    absent: dict[Path, Absent] = {}
    buffers: dict[Path, Stored] = {}
    constants: dict[Path, Value] = {}
    experts: Literal["eager"] | None = None

    @classmethod
    def read(cls, values: Any) -> Spec:
        """Raises CompressError with one sentence for anything else than what is described above."""
        try:
            return cls.model_validate_json(_text(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:4]) or "it"
            raise CompressError(
                f"the field 'fxcompress' of the config cannot be read: {where}: {first['msg']}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)


def _text(values: Any) -> str:
    import json

    try:
        return json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CompressError(f"the field 'fxcompress' of the config is no plain JSON: {error}") from error
