"""One saved form for every result: safetensors and ``fxcompress.json``; nothing in it is pickled.

When the family's config can say the result, the directory is an ordinary transformers checkpoint as well. When it
cannot, there is no ``config.json``, so that nothing loads the weights into a model of the wrong shape.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from fxcompress import verify
from fxcompress.capture import TOKEN_INPUTS
from fxcompress.errors import CompressError, ProofError
from fxcompress.export.config import NotExpressible
from fxcompress.export.files import output_directory
from fxcompress.export.load import FORMAT, MANIFEST, load, read_manifest, sha256
from fxcompress.export.tokenizer import rewrite_tokenizer
from fxcompress.export.transformers import file_tensors, renumbering, to_transformers
from fxcompress.plan import Step, read_ranges, write_ranges
from fxcompress.program import Program
from fxcompress.report import Report

WEIGHTS = "model.safetensors"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json"),
)


def save(
    program: Program, steps: Sequence[Step], report: Report, path: str | Path, source: str | Path | None = None
) -> Path:
    """Write a result to a new directory, with its report in JSON, HTML and text, and return the directory.

    ``source``: the directory of the original checkpoint, whose tokenizer files are copied along; by default where the
    model was loaded from. Raises CompressError before work starts when the directory cannot be written, and
    ProofError when what was saved does not load as what was in memory.
    """
    if program.is_meta:
        raise CompressError("weights on meta have no values to save; this was a dry run")
    strange = sorted(set(program.inputs) - set(TOKEN_INPUTS))
    if program.origin.config is not None and strange:
        raise CompressError(
            f"the model was captured with the inputs {', '.join(strange)}, with which it cannot be compared after"
            f" loading; capture it with inputs among {', '.join(TOKEN_INPUTS)}"
        )
    tokenizer = _tokenizer_of(program, source)
    need = sum(t.numel() * t.element_size() for t in program.state.values())
    with output_directory(path, need + (1 << 20)) as folder:
        _write_tokenizer(tokenizer, folder)  # first: it may refuse
        kind, why = _write_weights(program, steps, folder)
        _write_manifest(program, steps, report, kind, why, folder)
        if program.origin.config is not None:  # a plain module is rebuilt by its owner
            report.reload_error = _reload_error(program, folder)
            _write_manifest(program, steps, report, kind, why, folder)
        report.write(folder)
    return Path(path)


def _write_weights(program: Program, steps: Sequence[Step], folder: Path) -> tuple[str, str]:
    """As a transformers checkpoint where the config can say it, else as tensors alone with the reason."""
    try:
        ordinary = to_transformers(program, steps)
    except NotExpressible as refusal:
        tensors = file_tensors(program, renumbering(program, steps))
        save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        return "fxcompress", str(refusal)
    ordinary.save_pretrained(folder)
    return "transformers", ""


def _write_manifest(program: Program, steps: Sequence[Step], report: Report, kind: str, why: str, folder: Path) -> None:
    origin = program.origin
    manifest = {
        "format": FORMAT,
        "loads_with": kind,
        "why_not_transformers": why,
        "base": {
            "class": origin.model_class.__name__,
            "config": None if origin.config is None else _portable(origin.config.to_dict()),
        },
        "steps": [step.to_json() for step in steps],
        "numbering": {name: write_ranges(kept) for name, kept in program.numbering.items()},
        "report": report.to_json(),
        "versions": versions(),
        "sha256": {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the place that the model was read from: it is nobody's business."""
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def versions() -> dict[str, str]:
    return {
        "fxcompress": version("fxcompress"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _reload_error(program: Program, folder: Path) -> float:
    """How far what the files give is from what was in memory."""
    again, _, _ = load(folder)
    given = dict(zip(program.inputs, verify.probe(program), strict=True))
    with torch.no_grad():
        ours, theirs = (p.module(*p.bind(**given)) for p in (program, again))
    error = verify.difference(ours, theirs)
    if error > verify.tolerance(program):
        raise ProofError(f"what was saved differs from what was in memory: relative error {error:.2g}")
    return error


@dataclass(frozen=True)
class _Tokenizer:
    """The folder of a tokenizer, and the ids of it that stay; None where all do."""

    folder: Path
    kept: list[int] | None


def _tokenizer_of(program: Program, source: str | Path | None) -> _Tokenizer | None:
    source = source or getattr(program.origin.config, "_name_or_path", None)
    if not source or not Path(source).is_dir():
        return None
    folder = Path(source)
    numbering = program.numbering.get("input_ids")
    if numbering is None:
        return _Tokenizer(folder, None)
    place = {original: i for i, original in enumerate(_numbering_there(folder))}
    kept = [place[i] for i in numbering.tolist()] if place else numbering.tolist()
    known = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return _Tokenizer(folder, kept) if known else None


def _numbering_there(folder: Path) -> list[int]:
    """The original ids of the tokens of a folder that holds a result, whose tokenizer is rewritten already."""
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    if manifest.get("loads_with") != "fxcompress" or "input_ids" not in manifest.get("numbering", {}):
        return []
    return read_ranges(manifest["numbering"]["input_ids"]).tolist()


def _write_tokenizer(tokenizer: _Tokenizer | None, folder: Path) -> None:
    if tokenizer is None:
        return
    if tokenizer.kept is not None:
        rewrite_tokenizer(tokenizer.folder, folder, tokenizer.kept)
        return
    for name in _TOKENIZER_FILES:
        file = tokenizer.folder / name
        if file.is_file() and not (folder / name).exists():
            shutil.copyfile(file, folder / name)
