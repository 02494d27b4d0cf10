"""The fields of configs that hold token ids, renumbered.

{"eos_token_id": [2, 7], "vocab_size": 9}  --{2: 0, 7: 1}-->  {"eos_token_id": [0, 1], "vocab_size": 9}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.vocabulary import new_ids

_HOLD_IDS = ("_token_id", "_token_ids", "_token_index")
# a token that is gone cannot be generated: there is nothing left to suppress
_SUPPRESS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")


def present_config(program: Program) -> dict[str, Any] | None:
    """The values of the config that a program was captured with, its token ids as the program numbers them now."""
    return _present(program.origin.config, program)


def present_generation_config(program: Program) -> dict[str, Any] | None:
    return _present(program.origin.generation_config, program)


def _present(config: Any, program: Program) -> dict[str, Any] | None:
    kept = program.numbering.get("input_ids")
    if config is None or kept is None:
        return config and config.to_dict()
    return renumber_config(config.to_dict(), new_ids(kept.tolist()))


def special_ids(values: Mapping[str, Any]) -> set[int]:
    """Every token that a config names, those of configs inside it too."""
    found: set[int] = set()
    for name, value in values.items():
        if isinstance(value, dict):
            found |= special_ids(value)
        elif str(name).endswith(_HOLD_IDS):
            found |= set(_removed(value, {}))
    return found


def renumber_config(values: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """The values of a config with new ids, those of configs inside it too.

    Raises CompressError for a field that names a token without a new id. Negative ids say that there is none and stay.
    """
    return {name: _renumbered(name, value, new_id) for name, value in values.items()}


def _renumbered(name: str, value: Any, new_id: Mapping[int, int]) -> Any:
    if name in _SUPPRESS and value:
        entries = value.items() if isinstance(value, dict) else value  # biases by sequence, before they are JSON
        return [_mapped(entry, new_id) for entry in entries if not _removed(entry, new_id)] or None
    if isinstance(value, dict):
        return renumber_config(value, new_id)
    if not str(name).endswith(_HOLD_IDS):  # labels are numbered
        return value
    removed = _removed(value, new_id)
    if removed:
        raise CompressError(
            f"{name} is {value}, but the token {removed[0]} is left out of the vocabulary; keep it or correct the field"
        )
    return _mapped(value, new_id)


def _removed(value: Any, new_id: Mapping[int, int]) -> list[int]:
    if isinstance(value, list | tuple):
        return [i for item in value for i in _removed(item, new_id)]
    return [value] if isinstance(value, int) and value >= 0 and value not in new_id else []


def _mapped(value: Any, new_id: Mapping[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [_mapped(item, new_id) for item in value]
    return new_id[value] if isinstance(value, int) and value >= 0 else value
