"""Training spread over processes, by FSDP2: the loop that ``Trainer`` has for one.

    a step       batch_size x processes x accumulation rows, in the order that Trainer draws them; each process its part
    loss         sum over a process's tokens / tokens of the whole step x processes, as FSDP averages gradients
    checkpoint   each process its own piece, by ``torch.distributed.checkpoint``

Learning rate, rows and randomness of a step follow from its number: a run that goes on repeats and omits nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import Trainer, get_scheduler

from fxcompress.distillation.checkpoints import Checkpoints
from fxcompress.distillation.prepared import Prepared
from fxcompress.distillation.ranks import Ranks
from fxcompress.distillation.rows import IGNORED, Rows, collate
from fxcompress.distillation.trainer import LOSSES, Diverged, Line, Log, mean_loss, of_lines
from fxcompress.distillation.training import Training


class Sharded:
    """Training of a prepared run whose models are spread. ``losses``: of every step so far."""

    def __init__(self, ready: Prepared, checkpoints: Checkpoints | None, log: Log) -> None:
        self.ready, self.checkpoints, self.log = ready, checkpoints, log
        self.training, self.ranks, self.distiller = ready.request.training, ready.ranks, ready.distiller
        self.optimizer = _optimizer(self.distiller, self.training)
        self.rate = _schedule(self.optimizer, self.training, ready.steps)
        self.losses: list[float] = []

    def train(self) -> list[tuple[int, float]]:
        """From the last checkpoint on; returns the losses of all lines, by step, as ``Trainer`` does."""
        if self.checkpoints is not None and (last := self.checkpoints.last()) is not None:
            self._load(last)
        began, first = time.monotonic(), len(self.losses)
        self.distiller.train().zero_grad()
        rows = islice(steps_of(self.ready.rows, self.training, self.ranks), first, self.ready.steps)
        for step, batches in enumerate(rows, first + 1):
            self.losses.append(self._step(step, batches))
            if step % self.training.log_every == 0:
                self.log(self._line(step, first, time.monotonic() - began))
            if self.checkpoints is not None and (step % self.training.save_every == 0 or step == self.ready.steps):
                self._save(step, self.checkpoints)
        return of_lines(self.losses, self.training.log_every)

    def _step(self, step: int, batches: list[dict[str, Tensor]]) -> float:
        """Its loss, the same in all processes. Raises Diverged before a gradient reaches the weights."""
        torch.manual_seed(self.training.seed + step * self.ranks.world + self.ranks.rank)  # dropout
        device, dtype = self.training.where(), self.training.computes_in()
        counts = [(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]
        tokens, total = self.ranks.sum(torch.stack(counts).sum().to(device)), torch.zeros((), device=device)
        for batch in batches:
            with torch.autocast(device.type, dtype, dtype == torch.bfloat16):
                moved = {name: value.to(device) for name, value in batch.items()}
                loss = self.distiller(**moved, num_items_in_batch=tokens)["loss"]
            (loss * self.ranks.world).backward()
            total += loss.detach()
        loss = float(self.ranks.sum(total))
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {step}")
        self._update(step)
        return loss

    def _update(self, step: int) -> None:
        self.ready.zeros.restore_gradients()
        if self.training.clip:
            torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ready.zeros.restore()

    def _line(self, step: int, first: int, took: float) -> Line:
        done, steps = step - first, self.ready.steps
        speed = self.distiller.positions * self.ranks.world / max(took, 1e-9)
        loss = mean_loss(self.losses, step, self.training.log_every)
        return Line(step, steps, loss, self.rate(step), speed, took / done * (steps - step))

    def _save(self, step: int, checkpoints: Checkpoints) -> None:
        for name, parameter in self.distiller.student.named_parameters():
            if self.ranks.sum((~parameter.to_local().isfinite()).sum()):  # type: ignore[attr-defined]
                raise Diverged(f"{name} holds values that are NaN or Inf after step {step}")
        with checkpoints.writing(step) as beside:
            made = beside / f"checkpoint-{step}"
            dcp.save(self._state(), checkpoint_id=made)
            if self.ranks.first:
                (made / LOSSES).write_text(json.dumps(self.losses))

    def _load(self, place: Path) -> None:
        state = self._state()
        dcp.load(state, checkpoint_id=place)
        moments = get_state_dict(self.distiller, self.optimizer)[1] | {"state": state["moments"]}
        set_state_dict(self.distiller, self.optimizer, model_state_dict=state["weights"], optim_state_dict=moments)
        self.losses = json.loads((place / LOSSES).read_text())

    def _state(self) -> dict[str, Any]:
        """Tensors alone: torch reads those with weights_only=True, and options of the optimiser are the request's."""
        weights, optimizer = get_state_dict(self.distiller, self.optimizer)
        return {"weights": weights, "moments": optimizer["state"]}


def steps_of(rows: Rows, training: Training, ranks: Ranks) -> Iterator[list[dict[str, Tensor]]]:
    """This process's batches of every step, epoch after epoch; the last step of an epoch may have fewer."""
    sampler, size = SeedableRandomSampler(rows, data_seed=training.seed), training.batch_size
    for epoch in count():
        sampler.set_epoch(epoch)
        order = list(sampler)
        starts = range(ranks.rank * size, len(order) // (size * ranks.world) * size * ranks.world, size * ranks.world)
        for first in range(0, len(starts), training.accumulation):
            some = starts[first : first + training.accumulation]
            yield [collate([rows[i] for i in order[start : start + size]]) for start in some]


def _optimizer(distiller: Any, training: Training) -> torch.optim.Optimizer:
    """AdamW as Trainer makes it: no decay of biases and norms."""
    decayed = set(Trainer.get_decay_parameter_names(None, distiller))  # type: ignore[arg-type]
    named = dict(distiller.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if name in decayed], "weight_decay": training.weight_decay},
        {"params": [p for name, p in named.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas)


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> Callable[[int], float]:
    """The learning rate of a step, from 1 on, as Trainer has it."""
    options = (training.warmup_steps(steps), steps, {"min_lr": training.min_learning_rate})
    schedule: Any = get_scheduler("cosine_with_min_lr", optimizer, *options)
    return lambda step: training.learning_rate * schedule.lr_lambdas[0](step - 1)
