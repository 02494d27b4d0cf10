"""A program's own tensors as files hold them: under the first of their names, pruned weights packed if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fxcompress.export.names import renumbering
from fxcompress.packed import pack
from fxcompress.plan import Step
from fxcompress.program import Program


class Tensors:
    """The tensors of a file by their names there, on ``meta``; ``values`` makes them from those of the program."""

    def __init__(self, program: Program, steps: Sequence[Step], packed: bool) -> None:
        self.program = program
        self._packed = {name for name in program.sparse if packed}
        names = renumbering(program, steps)
        self._old = {new: name for name, new in names.items() if name in program.state}
        self.tensors: dict[str, Tensor] = {}
        self._made_of: dict[str, str] = {}
        for new, name in self._old.items():
            if name in self._packed:  # how many values there are, only they say
                made = {piece: value.to("meta") for piece, value in pack(new, program.read(name)).items()}
            else:
                made = {new: program.state[name].to("meta")}
            self.tensors |= made
            self._made_of |= dict.fromkeys(made, new)

    def values(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors of a file with their values; one of the program's is in memory at a time."""
        for new in dict.fromkeys(self._made_of[name] for name in names):
            value = self.program.read(self._old[new])
            made = pack(new, value) if self._old[new] in self._packed else {new: value}
            yield from ((name, made[name]) for name in names if self._made_of[name] == new)
