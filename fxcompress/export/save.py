"""One saved form for every result: safetensors and ``fxcompress.json``; nothing in it is pickled.

When the family's config can say the result, the directory is an ordinary transformers checkpoint as well; else its
config is of our own ``model_type``. What neither can say has no ``config.json``, so that nothing loads the weights into
a model of the wrong shape. Weights are written layer by layer, from memory or from the files of the original, and what
was written is run again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from fxcompress import verify
from fxcompress.capture import TOKEN_INPUTS
from fxcompress.checkpoint import read_checkpoint
from fxcompress.errors import CompressError, ProofError
from fxcompress.export.choose import Choice, choose
from fxcompress.export.companions import Tokenizer, find_tokenizer
from fxcompress.export.files import output_directory
from fxcompress.export.form import Form
from fxcompress.export.load import load
from fxcompress.export.names import renumbering
from fxcompress.export.pieces import Pieces
from fxcompress.export.shards import Shard, pack, read_size, size_in_bytes, write_index, write_shard
from fxcompress.export.tensors import Tensors
from fxcompress.files import sha256
from fxcompress.manifest import FORMAT, MANIFEST
from fxcompress.ondemand import on_demand
from fxcompress.plan import Step, write_ranges
from fxcompress.program import Program
from fxcompress.report import Report
from fxcompress.sparse import require_zeros
from fxcompress.stored import Stored
from fxcompress.streamed import wide

RESERVE = 1 << 20  # bytes for config, manifest and reports
MAX_SHARD_SIZE = "5GB"
PACKED = "its pruned weights are packed, which its class cannot read"


def save(
    program: Program,
    steps: Sequence[Step],
    report: Report,
    path: str | Path,
    source: str | Path | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    packed: bool = False,
) -> Path:
    """Write a result to a new directory, with its report in JSON, HTML and text, and return the directory.

    ``source``: the directory of the original checkpoint, whose tokenizer files are copied along; by default where the
    model was loaded from. ``max_shard_size``: of a weights file, in bytes or as ``"5GB"``. packed: pruned weights
    without their zeros (``fxcompress.packed``), for ``fxcompress.load`` alone. Raises CompressError before work starts
    when the directory cannot be written, and ProofError when what was saved does not load as what was in memory.
    """
    tokenizer = find_tokenizer(program, source)
    result = Result(program, list(steps), report, tokenizer, read_size(max_shard_size), packed)
    with output_directory(path, result.bytes + RESERVE) as folder:
        result.write(folder)
    return Path(path)


class Stage(Protocol):
    """Carries out a part of the work, or knows what it gave in an earlier run, if that still holds."""

    def __call__(self, what: str, make: Callable[[], Any], holds: Callable[[Any], bool] = ...) -> Any: ...


def _now(what: str, make: Callable[[], Any], holds: Callable[[Any], bool] = lambda _: True) -> Any:
    return make()


@dataclass
class Result:
    """A compressed program with all that is written of it. Raises CompressError for what cannot be saved."""

    program: Program
    steps: list[Step]
    report: Report
    tokenizer: Tokenizer | None
    max_shard_bytes: int
    packed: bool = False
    choice: Choice = field(default=Choice("graph", None), init=False)
    hashes: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.program.is_meta:
            raise CompressError("weights on meta have no values to save; this was a dry run")
        if self.packed and not self.program.sparse:
            raise CompressError("packed=True: no weight of the model was pruned, so there are no zeros to leave out")
        require_zeros(self.program)
        strange = sorted(set(self.program.inputs) - set(TOKEN_INPUTS))
        if self.program.origin.config is not None and strange:
            raise CompressError(
                f"the model was captured with the inputs {', '.join(strange)}, with which it cannot be compared after"
                f" loading; capture it with inputs among {', '.join(TOKEN_INPUTS)}"
            )

    @property
    def bytes(self) -> int:
        return sum(map(size_in_bytes, self.program.state.values()))

    def write(self, folder: Path, stage: Stage = _now) -> None:
        """Everything into a folder, the long parts of it as stages."""
        if self.tokenizer is not None:
            self.tokenizer.write(folder)  # first: it may refuse
        self.choice = Choice("graph", None, PACKED) if self.packed else choose(self.program, self.steps)
        if self.choice.form is not None:
            self._write_ordinary(self.choice.form, folder, stage)
        else:
            self._write_tensors(folder, stage)
        self._write_manifest(folder)
        if self.program.origin.config is not None:  # a plain module is rebuilt by its owner
            self.report.reload_error = stage("reload", lambda: self._reload_error(folder))
            self._write_manifest(folder)
        self.report.write(folder)

    def _write_ordinary(self, form: Form, folder: Path, stage: Stage) -> None:
        pieces = Pieces(form.on_meta())
        shards = pack(pieces.tensors, self.max_shard_bytes)
        self._write_shards(shards, lambda shard: pieces.values(list(shard.tensors), form.read), folder, stage)
        form.write_config(folder)

    def _write_tensors(self, folder: Path, stage: Stage) -> None:
        tensors = Tensors(self.program, self.steps, self.packed)
        shards = pack(tensors.tensors, self.max_shard_bytes)
        self._write_shards(shards, lambda shard: tensors.values(list(shard.tensors)), folder, stage)

    def _write_shards(self, shards: list[Shard], values: Callable[[Shard], Any], folder: Path, stage: Stage) -> None:
        for shard in shards:
            write, holds = partial(_written, folder, shard, values), partial(_is_there, folder / shard.file)
            self.hashes[shard.file] = stage(f"weights {shard.file}", write, holds)
        write_index(folder, shards)

    def _write_manifest(self, folder: Path) -> None:
        origin, names = self.program.origin, renumbering(self.program, self.steps)
        manifest = {
            "format": FORMAT,
            "loads_with": self.choice.loads_with,
            "why_not_transformers": self.choice.why,
            "base": {
                "class": origin.model_class.__name__,
                "config": None if origin.config is None else _portable(origin.config.to_dict()),
            },
            "steps": [step.to_json() for step in self.steps],
            "sparse": {names[name]: text for name, text in self.program.sparse.items() if name in names},
            "numbering": {name: write_ranges(kept) for name, kept in self.program.numbering.items()},
            "report": self.report.to_json(),
            "versions": versions(),
            "sha256": self.hashes,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

    def _reload_error(self, folder: Path) -> float:
        """How far what the files give is from what was in memory."""
        program = self.program.widened()
        inputs = dict(zip(program.inputs, verify.probe(program), strict=True))
        with torch.no_grad():
            ours = program.run(*program.bind(**inputs))
            theirs = _replay(folder, inputs) if self.choice.form is None else _run_again(folder, inputs)
        error = verify.difference(*verify.at_tokens(ours, theirs, inputs.get("attention_mask")))
        hooked = self.program.origin.hooked
        if error > verify.tolerance(program) and hooked:
            raise CompressError(
                f"{hooked[0]} was captured with forward hooks, which change what it gives and which no file can hold:"
                f" saved without them the result differs by {error:.2g}; remove them before compressing"
            )
        if error > verify.tolerance(program):
            raise ProofError(f"what was saved differs from what was in memory: relative error {error:.2g}")
        return error


def _written(folder: Path, shard: Shard, values: Callable[[Shard], Any]) -> str:
    return sha256(write_shard(folder, shard, values(shard)))


def _is_there(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


def _run_again(folder: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the ordinary model gives whose weights are in the files."""
    checkpoint = read_checkpoint(folder)
    stored = checkpoint.stored()
    model = on_demand(checkpoint.on_meta_in_float32(), partial(_read_wide, stored))
    outputs = model(**{name: tensor.cpu() for name, tensor in inputs.items()}, use_cache=False)
    return [outputs.logits]


def _read_wide(stored: Stored, name: str) -> Tensor:
    value = stored.read(name)
    return value.to(wide(value.dtype))


def _replay(folder: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    program = load(folder)[0].widened()
    return program.run(*program.bind(**{name: tensor.cpu() for name, tensor in inputs.items()}))


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
