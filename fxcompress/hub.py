"""A model by its id on the hub, wherever a directory is taken: what is needed of it is brought to the download cache.

    "org/name", revision  --resolve-->  .../models--org--name/snapshots/<commit>        a directory as any other

A path that exists is never looked up. Only configs, weights, tokenizer and chat templates are brought, no pickles and
no code. Where the hub is, as whom it is asked and whether at all are settings of huggingface_hub: ``HF_ENDPOINT``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_HUB_CACHE``.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from fxcompress.bounded import shown
from fxcompress.errors import CompressError

_WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
# The same model in other formats; the one folder that is of use is that of the chat templates.
_UNWANTED = ("*/*.json", "*/*.safetensors", "consolidated*.safetensors")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def resolve(model: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The directory or file of a model, brought from the hub if it is the id of one there.

    ``revision``: a branch, a tag or a commit, for ids only. ``local_files_only``: take what is in the cache. Raises
    CompressError, naming id and revision, for what is neither there nor can be brought.
    """
    if not isinstance(model, str | os.PathLike):
        raise CompressError(f"{type(model).__name__} is no path and no id; fxcompress.apply takes models in memory")
    if os.path.exists(model):  # False for what no path can be
        if revision is not None:
            raise CompressError(f"{model} is a path and has no revision {shown(revision)}: only ids have revisions")
        return Path(model)
    name = str(model)
    _require_id(name)
    _require_revision(name, revision)
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
            )
        )
    except Exception as error:  # of the hub's library, of the two HTTP libraries below it, of the disk
        raise CompressError(_why(name, revision, error)) from error
    if not folder.is_dir():
        raise CompressError(f"{_said(name, revision)} holds no model: none of its files is a config or safetensors")
    return folder


def _require_id(name: str) -> None:
    wrong = CompressError(
        f"{shown(name)} does not exist: a model is a directory with {constants.CONFIG_NAME}, a config file, or the id"
        " of a model on the hub, org/name"
    )
    if name.endswith(".json"):
        raise wrong
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise wrong from error


def _require_revision(name: str, revision: str | None) -> None:
    """It becomes part of a path in the cache."""
    if revision is not None and (not re.fullmatch(r"\w[\w.+/-]*", revision, re.ASCII) or ".." in revision):
        raise CompressError(f"{shown(revision)} is not a revision of {name}: a branch, a tag or a commit")


def _why(name: str, revision: str | None, error: Exception) -> str:
    """What went wrong and what to do, in one sentence."""
    said, cache = _said(name, revision), constants.HF_HUB_CACHE
    match error:
        case OSError() if error.errno in _FULL:
            return f"{said} does not fit on the disk of the cache {cache}: {error.strerror}"
        case GatedRepoError():
            return f"{said} is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        case RepositoryNotFoundError():
            return f"{said} is neither a path nor a model on the hub that one may see; a private one needs HF_TOKEN"
        case RevisionNotFoundError():
            return f"{name} is on the hub, but has no revision {revision or constants.DEFAULT_REVISION}"
        case LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE or error.__cause__ is None:
            return (
                f"{said} is neither a path nor whole in the cache {cache}, and the hub may not be asked: give a"
                " directory, or unset HF_HUB_OFFLINE"
            )
        case LocalEntryNotFoundError():
            return (
                f"{said} is neither a path nor whole in the cache {cache}, and the hub cannot be reached:"
                f" {_first_line(error.__cause__)}"
            )
    return f"{said} could not be brought from the hub: {_first_line(error)}"


def _said(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name} (revision {revision})"


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {shown(lines[0])}" if lines else type(error).__name__
