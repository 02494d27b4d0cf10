"""The processes that train together: torchrun starts one a device and tells each in the environment who it is.

One process alone is rank 0 of 1: it waits for nobody, and what all have to say is what it says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fxcompress.errors import CompressError

_PATIENCE = timedelta(minutes=30)  # with a process that does not answer


class Refused(CompressError):
    """What all processes raise together."""


def says(error: BaseException) -> bool:
    """Whether this process tells the user: the first tells all, another what it alone has met."""
    return rank_here() == 0 or not isinstance(error, Refused | KeyboardInterrupt)


@dataclass(frozen=True)
class Ranks:
    """Who this process is among how many. The first one writes and talks."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, in their order; a call is made by all of them."""
        if not self.several:
            return [value]
        found = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the processes, in place."""
        if self.several:
            dist.all_reduce(tensor)
        return tensor

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """What one process refuses within the block all refuse after it, rather than wait for that one."""
        if not self.several:
            yield
            return
        said = ""
        try:
            yield
        except (CompressError, OSError) as error:
            said = str(error)
        refused = [one for one in self.gathered(said) if one]
        if refused:
            raise Refused(refused[0])


def rank_here() -> int:
    """Of this process, known before it has met the others."""
    return int(os.environ.get("RANK", 0)) if _world() > 1 else 0


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[Ranks]:
    """The processes of a run. Collectives go by gloo between CPUs and by NCCL between GPUs.

    Raises CompressError where one of them ends before the others, or is silent for half an hour.
    """
    if _world() == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ours = not dist.is_initialized()
    if ours:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _of_another(error):
            raise
        raise _lost(error) from error
    if ours:  # not after an error: others may be waiting, and the process ends
        dist.destroy_process_group()


def _of_another(error: RuntimeError) -> bool:
    """gloo has no class of errors of its own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _lost(error: RuntimeError) -> CompressError:
    lost = Refused("another process of this run has ended, or does not answer")
    for note in getattr(error, "__notes__", ()):
        lost.add_note(note)
    return lost


def _world() -> int:
    """torchrun says it; a batch system's own WORLD_SIZE without a place to meet does not count."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "MASTER_ADDR" in os.environ else 1
