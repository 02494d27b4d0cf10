"""Intermediate states of a student near those of its teacher, where layers were left out.

    L_is = mean over pairs (n, m) and positions of  1 - cos(W s_n, t_m)

s_n is the residual stream before layer n of the student, for n = its number of layers that after the last; t_m is the
teacher's. W is one learned linear map for all pairs, without a bias; it is trained along and thrown away. (Minitron,
arXiv 2407.14679: one shared map, cosine the best distance; of use where many layers were removed.)

    teacher   0 1 2 3 4 5      removed: 2, 3        what enters a layer that stayed is what entered it in the teacher:
    student   0 1     2 3                           pairs (0, 0) at the embedding and (2, 4) after the gap
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.distillation.losses import wide
from fxcompress.distillation.student import Student
from fxcompress.errors import CompressError
from fxcompress.manifest import MANIFEST, read_manifest
from fxcompress.plan import Step, read_steps

Pairs = Sequence[tuple[int, int]]


class States(nn.Module):
    """How far the streams of two models are apart at pairs of places; ``lift`` is W."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Pairs, ids: Tensor) -> None:
        super().__init__()
        self.pairs = list(pairs)
        ours, theirs = _width(student, self.places(0), ids), _width(teacher, self.places(1), ids)
        self.lift = nn.Linear(ours, theirs, bias=False)
        (nn.init.eye_ if ours == theirs else nn.init.orthogonal_)(self.lift.weight)

    def places(self, of: int) -> list[int]:
        """In the student (0) or the teacher (1)."""
        return [pair[of] for pair in self.pairs]

    def forward(self, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor], counts: Tensor) -> Tensor:
        """L_is, summed over the positions that count. ours, theirs: of places, (batch, length, width)."""
        apart = [self._apart(ours[n][:, :-1][counts], theirs[m][:, :-1][counts]) for n, m in self.pairs]
        return torch.stack(apart).mean()

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(wide(self.lift(ours)), wide(theirs), dim=-1)).sum()


@contextlib.contextmanager
def recorded(model: nn.Module, places: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What stands in the residual stream at some places when the model runs within the block."""
    found: dict[int, Tensor] = {}
    _, layers = layers_of(model)
    hooks = []
    for n in places:
        if n < len(layers):
            hooks.append(layers[n].register_forward_pre_hook(_before(found, n), with_kwargs=True))
        else:
            hooks.append(layers[-1].register_forward_hook(_after(found, n)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The longest list of modules that lies in no other one, and its path."""
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    if not outer:
        raise CompressError(f"{type(model).__name__} has no list of layers: its intermediate states have no names")
    path = max(outer, key=lambda path: len(lists[path]))
    return path, list(lists[path])


def pairs_of(student: Student, teacher: nn.Module, given: Pairs | None) -> Pairs:
    """The caller's pairs, or those that follow from what the passes removed.

    Raises CompressError for places that are not there, and where no plan says which layers correspond.
    """
    (path, ours), (_, theirs) = layers_of(student.module), layers_of(teacher)
    if given is not None:
        for n, m in given:
            if not (0 <= n <= len(ours) and 0 <= m <= len(theirs)):
                raise CompressError(
                    f"the pair {n}:{m} is out of range: the student has {len(ours)} layers and the teacher"
                    f" {len(theirs)}"
                )
        return list(given)
    removed = _removed(_steps(student), path)
    if len(ours) not in (len(theirs), len(theirs) - len(removed)):
        raise CompressError(
            f"the student has {len(ours)} layers and the teacher {len(theirs)}, and the student's plan removed"
            f" {len(removed)}: say which states correspond by pairs"
        )
    return after_gaps(removed, len(theirs), closed=len(ours) < len(theirs))


def after_gaps(removed: Collection[int], layers: int, closed: bool) -> Pairs:
    """Where the first layer that stayed begins, and each that stayed after one that did not.

    Where nothing was removed: the embedding, and the place two layers before the end.

    layers: of the teacher. closed: layers are counted anew in the student; else what was removed still has its number.
    """
    stayed = [m for m in range(layers + 1) if m not in removed]  # the end is a place too
    gaps = [m for m in stayed if m - 1 in removed] if removed else stayed[-3:-2]
    places = dict.fromkeys([stayed[0], *gaps])
    return [(stayed.index(m) if closed else m, m) for m in places]


def _steps(student: Student) -> Sequence[Step]:
    """The plan of a student, also where its config says everything and nothing is left to replay."""
    if isinstance(student.given, Path) and (student.given / MANIFEST).is_file():
        return read_steps(read_manifest(student.given)["steps"])
    return [] if student.compressed is None else student.compressed.steps


def _removed(steps: Sequence[Step], container: str) -> set[int]:
    """Items of a list of layers that a plan removed, by their places in the original."""
    split = [path.rpartition(".") for step in steps for path in step.remove]
    return {int(last) for place, _, last in split if place == container and last.isdigit()}


def _before(found: dict[int, Tensor], n: int) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        found[n] = kwargs.get("hidden_states", given[0])

    return hook


def _after(found: dict[int, Tensor], n: int) -> Any:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        found[n] = output if isinstance(output, Tensor) else output[0]

    return hook


@torch.no_grad()
def _width(model: Any, places: Sequence[int], ids: Tensor) -> int:
    with recorded(model, places) as found:
        model(input_ids=ids, use_cache=False)
    missing = [n for n in places if n not in found or found[n].dim() != 3]
    if missing:
        raise CompressError(f"layer {missing[0]} of {type(model).__name__} gives no states (batch, length, width)")
    return found[places[0]].shape[-1]
