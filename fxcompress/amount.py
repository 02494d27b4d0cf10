"""How many indices stay: from what the user asked for to a count that is feasible, and the difference said.

``ratio`` (the part to remove) goes to the nearest feasible count. ``size`` (what is to be left, over all outer axes)
is exact or an error that names its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.errors import CompressError


@dataclass(frozen=True)
class Amount:
    """A request in one of two units. ``round_to``: the kept count of every row is a multiple of it."""

    ratio: float | None = None
    size: int | None = None
    round_to: int = 1

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.size is None):
            raise CompressError("say how much by exactly one of ratio= (the part to remove) and size= (what is left)")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise CompressError(f"ratio={self.ratio} is outside [0, 1): it is the part to remove, 0.25 for a quarter")
        if self.size is not None and self.size < 1:
            raise CompressError(f"size={self.size} leaves nothing: it is the number of indices that stay")
        if self.round_to < 1:
            raise CompressError(f"round_to={self.round_to} is not a positive step")

    def kept(self, sizes: tuple[int, ...], what: str) -> int:
        """The count kept in every row of a group with these sizes (outer axes, axis)."""
        rows, count = _product(sizes[:-1]), sizes[-1]
        if self.ratio is not None:
            return self._by_ratio(count, rows, what)
        return self._by_size(count, rows, what)

    def _by_ratio(self, count: int, rows: int, what: str) -> int:
        assert self.ratio is not None
        if self.ratio == 0:
            return count
        asked = count * (1 - self.ratio)
        kept = round(asked / self.round_to) * self.round_to
        if abs(kept - asked) > self.round_to / 2 or not 0 < kept < count:
            best = min(max(kept, self.round_to), (count - 1) // self.round_to * self.round_to)
            hint = f"the nearest ratio is {1 - best / count:.4g}" if 0 < best < count else "it cannot be cut at all"
            raise CompressError(
                f"{what}: ratio={self.ratio:g} of {count * rows} asks for {asked * rows:g} to stay, in steps of"
                f" {self.round_to * rows}; that would remove {'nothing' if kept >= count else 'everything'}; {hint}"
            )
        return kept

    def _by_size(self, count: int, rows: int, what: str) -> int:
        assert self.size is not None
        step = self.round_to * rows
        if self.size > count * rows:
            raise CompressError(f"{what}: size={self.size} is more than the {count * rows} there are")
        if self.size % step and self.size != count * rows:
            below = self.size // step * step
            near = [n for n in (below, below + step) if 0 < n <= count * rows]
            raise CompressError(
                f"{what}: size={self.size} is not feasible: {rows} rows keep the same number each, in steps of {step};"
                f" the nearest sizes are {' and '.join(map(str, near))}"
            )
        return self.size // rows


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total
