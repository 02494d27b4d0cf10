"""``fxcompress.json``: what a result is, how it is rebuilt, and by which hashes its weights are known.

Reading it checks every field, so that whoever reads the mapping afterwards finds what belongs there. Nothing in it is
evaluated: the base is looked up among the classes of transformers by its name, and the steps are indices and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxcompress.bounded import read_json, shown
from fxcompress.errors import CompressError
from fxcompress.files import inside
from fxcompress.plan import MOST_INDICES, read_ranges, read_steps
from fxcompress.schema import ManifestFields, check

FORMAT = 1
MANIFEST = "fxcompress.json"
MOST_BYTES = 1 << 26  # indices of which every second one stays take five to eight bytes each


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a result as a mapping, with each of its fields checked.

    Raises CompressError, naming the file and the field, for everything that is not a manifest of this format.
    """
    if not (folder / MANIFEST).is_file():
        raise CompressError(f"{folder} holds no {MANIFEST}: it is not a result of fxcompress")
    file = inside(folder, MANIFEST)
    manifest = read_json(file, MOST_BYTES)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CompressError(f"{file} cannot be read: it has no field format")
    if manifest["format"] != FORMAT:
        written = shown(manifest["format"])
        raise CompressError(f"{file} has format {written}; this version of fxcompress reads format {FORMAT}")
    check_manifest(manifest, str(file))
    return manifest


def check_manifest(manifest: Any, what: str) -> None:
    """Raise CompressError, naming ``what`` and the field, unless it is the content of a manifest of this format."""
    try:
        check(ManifestFields, manifest, "manifest")
        read_steps(manifest["steps"])
        for name, text in manifest["numbering"].items():
            if read_ranges(text, MOST_INDICES // len(manifest["numbering"])).dim() > 1:
                raise CompressError(f"numbering.{shown(name)} has rows; it is one list of indices")
    except CompressError as error:
        raise CompressError(f"{what} cannot be read: {error}") from error


def result_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """The weights of a result, by name: the files whose hashes the manifest has, and no others.

    Raises CompressError for one that is missing or leads out of the folder, and for weights that the manifest lacks.
    """
    files = {name: inside(folder, name) for name in manifest["sha256"]}
    for name, file in files.items():
        if not file.is_file():
            raise CompressError(f"{folder}: {name} is missing")
    others = sorted(file.name for file in folder.glob("*.safetensors") if file.name not in files)
    if others:
        raise CompressError(f"{folder / shown(others[0])} is not among the weights that were saved: remove it")
    return files
