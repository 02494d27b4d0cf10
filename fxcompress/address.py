"""What the values of an index tensor point into: cutting an axis renumbers the addresses of its indices.

    scores (t e) -topk-> values, index            the values of ``index`` are positions on e
    experts(x, index, ..., up (e f h))            and address e here: the router and the experts share their axis

Values that the caller passes point into whatever is looked up with them. Such an axis is a *border* of the program: it
can be cut only together with what the caller passes. Values that anything else is computed from pin what they address.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from fxcompress.axis import Dim


@dataclass(eq=False)
class Input:
    """The values of an input of the program, with the dims that they turn out to address."""

    name: str
    addressed: list[Dim] = field(default_factory=list)
    computed: str = ""  # the first call that computes with the values, if any does


Values: TypeAlias = "Dim | Input | None"  # None: nothing is known, or no index tensor
