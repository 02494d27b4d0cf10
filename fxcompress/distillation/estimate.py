"""Memory and time of a run, from sizes and from a batch that is run twice before training begins.

weights + gradients + two moments      4 x 4 bytes a trained parameter, in float32
teacher                                its weights
activations                            what one batch keeps for its backward, added up as it is kept
logits                                 of a chunk of positions, of both models and of what the loss makes of them
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from fxcompress.distillation.rows import collate
from fxcompress.distillation.teacher import Online, Teacher
from fxcompress.errors import CompressError

if TYPE_CHECKING:
    from fxcompress.distillation.prepared import Prepared

_COPIES = 8  # float32 tensors of (chunk, vocabulary) that are alive at once: logits, log-probabilities, gradients


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for, and seconds. ``seconds_per_step`` leaves out the optimiser."""

    parameters: int
    steps: int
    tokens_per_step: int
    memory: dict[str, int]
    available: int
    seconds_per_step: float

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        return self.steps * self.seconds_per_step

    @property
    def fits(self) -> bool:
        return self.bytes <= self.available

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes, "seconds": self.seconds}


def measured(ready: Prepared) -> Estimate:
    """Of a run whose models are where they train. Raises CompressError where a batch does not fit in memory."""
    distiller, training = ready.distiller, ready.request.training
    device, dtype = training.where(), training.computes_in()
    whole = collate([ready.rows[i] for i in range(training.batch_size)])
    batch: Mapping[str, Any] = {name: value.to(device) for name, value in whole.items()}
    tokens = int((whole["labels"][:, 1:] >= 0).sum())

    def loss() -> Tensor:
        with torch.autocast(device.type, dtype, dtype == torch.bfloat16):
            return distiller(**batch)["loss"]

    distiller.train()
    try:
        return estimated(
            loss,
            distiller.student,
            others=_bytes(distiller.teacher),
            chunk_logits=min(training.chunk, tokens) * ready.vocabulary,
            batches_per_step=training.accumulation,
            steps=ready.steps,
            tokens_per_step=tokens * training.accumulation * ready.ranks.world,
            device=device,
        )
    except torch.OutOfMemoryError as error:
        raise CompressError(
            f"a batch of {training.batch_size} rows of {whole['input_ids'].shape[1]:,} tokens does not fit in memory:"
            " take a smaller batch with more accumulation, or gradient checkpointing"
        ) from error
    finally:
        distiller.positions = 0


def _bytes(teacher: Teacher | None) -> int:
    if not isinstance(teacher, Online):
        return 0
    return bytes_of(teacher.model)


def estimated(
    loss: Callable[[], Tensor],
    student: nn.Module,
    others: int,
    chunk_logits: int,
    batches_per_step: int,
    steps: int,
    tokens_per_step: int,
    device: torch.device,
) -> Estimate:
    """``loss``: of one batch; others: bytes of what is there and not trained; chunk_logits: elements of a chunk's.

    Leaves the student without gradients.
    """
    weights = {_here(p).untyped_storage().data_ptr() for p in student.parameters()}
    trained = [p for p in student.parameters() if p.requires_grad]
    available = free_memory(device)  # before gradients take some of it
    activations = _kept(loss, weights)
    student.zero_grad(set_to_none=True)
    started = time.monotonic()
    loss().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took = time.monotonic() - started
    student.zero_grad(set_to_none=True)
    sizes = sum(_here(p).nbytes for p in trained)
    present = bytes_of(student) + others
    memory = {
        "weights": present - others,
        "gradients": sizes,
        "optimiser": 2 * sizes,
        "teacher": others,
        "activations": activations,
        "logits": 4 * _COPIES * chunk_logits,
    }
    return Estimate(
        parameters=sum(p.numel() for p in trained),
        steps=steps,
        tokens_per_step=tokens_per_step,
        memory=memory,
        available=available + present,  # student and teacher are there already
        seconds_per_step=took * batches_per_step,
    )


NOTHING = Estimate(0, 0, 0, {}, 0, 0.0)  # of a run that was not measured


def bytes_of(module: nn.Module) -> int:
    """Of its parameters; of those that are spread over processes, what this one has."""
    return sum(_here(p).nbytes for p in module.parameters())


def _here(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _kept(loss: Callable[[], Tensor], weights: set[int]) -> int:
    """Bytes that are kept for the backward of a loss, each storage once; weights are there anyway."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    value.backward()
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes that could be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
