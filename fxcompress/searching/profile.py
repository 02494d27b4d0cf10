"""Where a result is to be served, and what it must be like for that.

* ``fxcompress``: anything; ``fxcompress.load`` loads every result.
* ``transformers``: a config of the model's own class says the sizes, and it builds the same model.
* ``vllm``: the same, since vLLM builds its own classes from such a config (``docs/serving.md``); it is not run here.

Served on several devices, all that is split among them must divide by their number: heads, KV heads, SSM groups, and
neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fxcompress.axes import AxisMap, Group
from fxcompress.bounded import quoted
from fxcompress.errors import CompressError
from fxcompress.export.config import NotExpressible
from fxcompress.export.form import find_form
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.searching.space import Choices, Space

Name = Literal["transformers", "vllm", "fxcompress"]
SPLIT = ("query_head", "kv_head", "ssm_head", "ssm_group", "ssm_channel", "ffn_neuron", "expert_neuron")


@dataclass(frozen=True)
class Profile:
    """What serves a result, on so many devices at once. Raises CompressError for others."""

    name: Name = "fxcompress"
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise CompressError(f"profile={quoted(self.name)} is unknown; there are {', '.join(get_args(Name))}")
        if type(self.tensor_parallel) is not int or self.tensor_parallel < 1:
            raise CompressError(f"tensor_parallel={quoted(self.tensor_parallel)} is no number of devices")

    def narrowed(self, space: Space, program: Program) -> Space:
        """The sizes of a space that can be split. Raises CompressError where some axis of the model cannot be."""
        searched = {group for axis in space.choices for group in axis.groups}
        for group in program.get(AxisMap).groups:
            if group not in searched and self._splits(group) and group.total % self.tensor_parallel:
                raise CompressError(f"{group.key} has {group.total}, which cannot be split on {self._devices}")
        return space.only({axis.name: self._divisible(axis) for axis in space.choices})

    def _divisible(self, axis: Choices) -> list[int]:
        if not any(map(self._splits, axis.groups)):
            return list(axis.sizes)
        sizes = [size for size in axis.sizes if axis.total(size) % self.tensor_parallel == 0]
        if not sizes:
            raise CompressError(f"{axis.name}: none of {_some(axis.sizes)} can be split on {self._devices}")
        return sizes

    @property
    def _devices(self) -> str:
        return f"tensor_parallel={self.tensor_parallel} devices"

    def _splits(self, group: Group) -> bool:
        return not group.roles.isdisjoint(SPLIT)

    @property
    def loads_everything(self) -> bool:
        return self.name == "fxcompress"

    def why_not(self, program: Program, steps: Sequence[Step]) -> str:
        """Why the result of these steps cannot be loaded there, empty where it can; on meta only sizes are compared."""
        if self.loads_everything:
            return ""
        try:
            find_form(program, steps)
        except NotExpressible as refusal:
            return str(refusal)
        return ""


ANYTHING = Profile()


def _some(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes[:8])) + (f" and {len(sizes) - 8} more" if len(sizes) > 8 else "")
