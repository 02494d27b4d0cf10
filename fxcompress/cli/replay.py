"""Everything that a result claims, checked again: its plan is replayed on the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxcompress import verify
from fxcompress.cli.progress import Steps
from fxcompress.compressed import CompressedModel
from fxcompress.errors import CompressError
from fxcompress.export.names import renumbering
from fxcompress.files import sha256
from fxcompress.manifest import read_manifest
from fxcompress.plan import Step, read_steps
from fxcompress.program import Program
from fxcompress.rewrite import rewrite
from fxcompress.source import Source
from fxcompress.sparse import broken


@dataclass(frozen=True)
class Check:
    """One claim ``of`` a pass or of the whole; ``holds`` is None where it could not be checked."""

    of: str
    name: str
    holds: bool | None
    detail: str


def checks(original: Source, result: Source, steps: Steps) -> list[Check]:
    """All checks, up to the first that leaves nothing to compare. Raises CompressError for what is no result."""
    manifest = read_manifest(result.folder)
    intact = _same_files("result", manifest["sha256"], result, steps)
    if intact.holds is False:
        return [intact]
    ours, theirs = original.opened(), result.opened()
    plan = manifest["steps"]
    done = [step.to_json() for step in ours.steps]
    found = [_same_files("original", _recorded(manifest, len(done)), original, steps), intact]
    if plan[: len(done)] != done:
        return [*found, Check("plan", "continues the original's", False, "the original was compressed in another way")]
    program = ours.program
    for step in read_steps(plan[len(done) :]):
        with steps(f"{step.name}: replay"):
            try:
                program, laws = _replayed(program, step)
            except CompressError as error:
                return [*found, Check(step.name, "replay", False, str(error))]
        found += laws
    replayed = CompressedModel(program, read_steps(plan), ours.report)
    with steps("weights and outputs"):
        new = {name for step in read_steps(plan[len(done) :]) for name in step.sparse}
        return [*found, *_compared(replayed, CompressedModel(theirs.program, theirs.steps, theirs.report), new)]


def _recorded(manifest: Mapping[str, Any], done: int) -> Mapping[str, str]:
    """Hashes of the weights that the run began with which took a model with so many steps behind it."""
    runs = manifest["report"]["notes"].get("runs", [])
    began = [run["sha256"] for run in runs if run["begins_at"] == done]
    return {name: digest for name, digest in began[-1].items() if name.endswith(".safetensors")} if began else {}


def _same_files(of: str, recorded: Mapping[str, str], source: Source, steps: Steps) -> Check:
    """Are a model's files those that were recorded, by their hashes?"""
    if not recorded:
        return Check(of, "hashes", None, "none were recorded")
    files = {file.name: file for file in source.files}
    with steps(f"hashes of {source.path.name}", len(recorded)) as advance:
        for name, digest in recorded.items():
            if name not in files:
                return Check(of, "hashes", False, f"{name} is missing")
            if sha256(files[name]) != digest:
                return Check(of, "hashes", False, f"{name} is another file than was recorded")
            advance()
    return Check(of, "hashes", True, ", ".join(recorded))


def _replayed(before: Program, step: Step) -> tuple[Program, list[Check]]:
    after = before.clone()
    rewrite(after, step)
    laws = [] if step.is_empty or step.sparse else verify.check(before, after, step)  # values are in no plan
    return after, [_of_law(step.name, law) for law in laws]


def _of_law(name: str, law: verify.Law) -> Check:
    if law.error is None:
        return Check(name, law.name, None, law.why)
    return Check(name, law.name, law.holds, f"error {law.error:.2g} (at most {law.tolerance:g})")


def _compared(replayed: CompressedModel, loaded: CompressedModel, new: Set[str]) -> Iterator[Check]:
    """``new``: the tensors that the steps between the two have pruned, whose values are in no plan."""
    pruned = _patterns(replayed, new)
    ours, theirs = (_parameters(model) for model in (replayed, loaded))
    yield _same_weights(*({n: read for n, read in side.items() if n not in pruned} for side in (ours, theirs)))
    ties, kept = _ties(replayed), _ties(loaded)
    broken = sorted(ties - kept)
    detail = f"{broken[0]} is no longer tied" if broken else ", ".join(sorted(ties)) or "no tensor is tied"
    yield Check("result", "ties are kept", not broken, detail)
    if pruned:  # their values are of a calibration, which is not at hand
        yield _same_zeros(pruned, loaded)
        return
    inputs = verify.probe(replayed.program)
    with torch.no_grad():
        error = verify.difference(replayed.program.run(*inputs), loaded.program.run(*inputs))
    most = verify.tolerance(replayed.program)
    yield Check("result", "outputs equal the replay's", error <= most, f"error {error:.2g} (at most {most:g})")


def _patterns(model: CompressedModel, among: Set[str]) -> dict[str, str]:
    """The patterns of these pruned weights by their names in a checkpoint."""
    names = renumbering(model.program, model.steps)
    return {names[name]: text for name, text in model.program.sparse.items() if name in names and name in among}


def _same_zeros(planned: Mapping[str, str], loaded: CompressedModel) -> Check:
    name = "zeros are where the plan asks for them"
    theirs = _patterns(loaded, loaded.program.sparse.keys())
    if planned.items() - theirs.items():
        return Check("result", name, False, "the manifest names other patterns than the plan")
    filled = broken(loaded.program, loaded.program.sparse)
    if filled:
        first, count = next(iter(filled.items()))
        return Check("result", name, False, f"{first} has {count:,} weights that have to be zero")
    return Check("result", name, True, f"{len(planned)} matrices, whose values only the calibration says")


def _parameters(model: CompressedModel) -> dict[str, Callable[[], Tensor]]:
    """How every parameter is read, by its name in a checkpoint."""
    names = renumbering(model.program, model.steps)
    return {names[name]: partial(model.program.read, name) for name, _ in model.program.parameters()}


def _ties(model: CompressedModel) -> set[str]:
    """The tensors with more than one name, by their names in a checkpoint."""
    names = renumbering(model.program, model.steps)
    return {names[first] for first, aliases in model.program.names.items() if len(aliases) > 1 and first in names}


def _same_weights(ours: Mapping[str, Callable], theirs: Mapping[str, Callable]) -> Check:
    name = "weights equal the replay's"
    unlike = sorted(ours.keys() ^ theirs.keys())
    if unlike:
        return Check("result", name, False, f"{unlike[0]} is on one side only")
    other = [n for n, read in ours.items() if not _identical(read(), theirs[n]())]
    if other:
        return Check("result", name, False, f"{len(other)} of {len(ours)} tensors differ, {other[0]} among them")
    return Check("result", name, True, f"{len(ours)} tensors, bit for bit")


def _identical(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
