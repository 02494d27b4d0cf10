"""The tokenizer beside a result's weights: copied from the original, or rewritten where tokens were removed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fxcompress.export.tokenizer import rewrite_tokenizer
from fxcompress.manifest import MANIFEST, read_manifest
from fxcompress.plan import read_ranges
from fxcompress.program import Program

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Tokenizer:
    """The folder of a tokenizer, and the ids of it that stay; None where all do."""

    folder: Path
    kept: list[int] | None

    def write(self, folder: Path) -> None:
        if self.kept is not None:
            rewrite_tokenizer(self.folder, folder, self.kept)
            return
        for name in _FILES:
            file = self.folder / name
            if file.is_file() and not (folder / name).exists():
                shutil.copyfile(file, folder / name)


def find_tokenizer(program: Program, source: str | Path | None) -> Tokenizer | None:
    """The tokenizer in ``source``, or where the model was loaded from; None where there is none."""
    source = source or getattr(program.origin.config, "_name_or_path", None)
    if not source or not Path(source).is_dir():
        return None
    folder = Path(source)
    numbering = program.numbering.get("input_ids")
    if numbering is None:
        return Tokenizer(folder, None)
    place = {original: i for i, original in enumerate(_numbering_there(folder))}
    kept = [place[i] for i in numbering.tolist()] if place else numbering.tolist()
    known = any((folder / name).is_file() for name in _FILES)
    return Tokenizer(folder, kept) if known else None


def _numbering_there(folder: Path) -> list[int]:
    """The original ids of the tokens of a folder that holds a result, whose tokenizer is rewritten already."""
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    if manifest.get("loads_with", "transformers") == "transformers" or "input_ids" not in manifest.get("numbering", {}):
        return []
    return read_ranges(manifest["numbering"]["input_ids"]).tolist()
