"""Student and teacher belong together: token ids mean the same to both. Checked before any weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxcompress.checkpoint import CONFIG, read_checkpoint, read_tokenizer
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.hub import resolve

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def placed(model: Any) -> Any:
    """A model, or the directory that a path or a hub id stands for."""
    return resolve(model) if isinstance(model, str | Path) else model


def tokenizer_of(model: Any) -> Path | None:
    """The folder of a model's tokenizer; None where none is known."""
    if isinstance(model, Path):
        folder: Any = model if model.is_dir() else model.parent
    else:
        config = model.program.origin.config if isinstance(model, CompressedModel) else getattr(model, "config", None)
        folder = getattr(config, "_name_or_path", None)
    if not folder or not Path(folder).is_dir():
        return None
    return Path(folder) if any((Path(folder) / name).is_file() for name in _TOKENIZER) else None


def vocabulary_of(model: Any) -> int | None:
    """How many ids a model has, as far as its config says."""
    if isinstance(model, CompressedModel):
        renumbered = model.program.numbering.get("input_ids")
        if renumbered is not None:
            return len(renumbered)
        config = model.program.origin.config
    elif isinstance(model, Path):
        named = model if model.is_file() else model / CONFIG
        config = read_checkpoint(model).config if named.is_file() else None
    else:
        config = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "vocab_size", None)


def require_pair(student: Any, teacher: Any) -> str:
    """Raise CompressError unless ids mean the same to both. Returns what could not be compared, empty if nothing."""
    require_same_size(vocabulary_of(student), vocabulary_of(teacher))
    ours, theirs = tokenizer_of(student), tokenizer_of(teacher)
    if ours is None or theirs is None:
        missing = "the student" if ours is None else "the teacher"
        return f"no tokenizer lies beside {missing}: that ids mean the same to both could not be checked"
    if ours.resolve() != theirs.resolve():
        _require_same_tokens(ours, theirs)
    return ""


def require_same_size(student: int | None, teacher: int | None) -> None:
    if student is not None and teacher is not None and student != teacher:
        raise CompressError(
            f"the student has {student:,} token ids and the teacher {teacher:,}: logits are compared id by id, so both"
            " need one vocabulary; a student of PruneVocabulary is distilled before tokens are removed"
        )


def _require_same_tokens(ours: Path, theirs: Path) -> None:
    mine, other = read_tokenizer(ours), read_tokenizer(theirs)
    a, b = mine.get_vocab(), other.get_vocab()
    differ = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
    if differ:
        token = differ[0]
        raise CompressError(
            f"the tokenizers of student and teacher differ in {len(differ):,} tokens: {token!r} is"
            f" {a.get(token, 'unknown')} to the student and {b.get(token, 'unknown')} to the teacher"
        )
    if _how(mine) != _how(other):
        raise CompressError("the tokenizers of student and teacher have the same tokens and split text differently")


def _how(tokenizer: Any) -> Any:
    """How text is split, where that is data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    return [content.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
