"""The patterns of zeros that a program's weights have: counted, and held to when the program is saved.

Which weights are zero is said by their values alone, so that a mask cannot differ from what it masks.
"""

from __future__ import annotations

from collections.abc import Mapping

from fxcompress.errors import CompressError
from fxcompress.program import Program
from fxcompress.projections import projections
from fxcompress.weights.pattern import parse


def broken(program: Program, patterns: Mapping[str, str]) -> dict[str, int]:
    """The parameters with weights that have to be zero by their patterns and are not, and how many those are.

    Raises CompressError, naming the parameter, for a pattern that it cannot have.
    """
    found: dict[str, int] = {}
    matrices = {p.name: p for p in projections(program)} if patterns else {}
    for name in [name for name in patterns if name in program.state]:
        if name not in matrices:
            raise CompressError(f"{name}: no matrix that activations are multiplied by, it cannot have a pattern")
        try:
            missing = parse(patterns[name]).missing(matrices[name].matrices(program.read(name)) == 0)
        except CompressError as error:  # patterns may come from a file
            raise CompressError(f"{name}: {error}") from error
        found |= {name: missing} if missing else {}
    return found


def require_zeros(program: Program) -> None:
    """Raise CompressError where training, or anything else, has filled the zeros of a pruned weight."""
    for name, missing in broken(program, program.sparse).items():
        raise CompressError(
            f"{name} was pruned to {program.sparse[name]}, and {missing:,} weights that have to be zero are not: train"
            " with its zeros held, or take its entry out of program.sparse to save it as it is"
        )
