"""How long and how fast to train. Defaults follow the recipes of Minitron where those are known.

Papers: learning rates 1e-4 to 2e-4 with a cosine down to a tenth and less, warm-ups of 40 to 60 steps, batches of 768
to 1,152 rows of 4,096 to 8,192 tokens (arXiv 2407.14679, 2408.11796, 2504.11409); betas, weight decay are not stated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fxcompress.bounded import quoted
from fxcompress.distillation.float8 import Float8
from fxcompress.errors import CompressError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Training:
    """One step takes ``batch_size * accumulation`` rows in each process. ``steps`` go before ``epochs``; warmup None:
    60 steps, at most a tenth of them. precision: what layers compute in, weights and losses being in float32; None:
    bfloat16 on CUDA.
    float8: which linear layers compute in FP8; see ``float8.py``.
    compile: run student and teacher through ``torch.compile``, which takes a minute or more before the first step.
    more: fields of ``transformers.TrainingArguments`` by name. Raises CompressError for values that cannot be."""

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    min_learning_rate: float = 1e-5
    warmup: int | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    precision: Precision | None = None
    float8: Float8 | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    chunk: int = 1024
    device: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "save_every", "log_every", "chunk"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise CompressError(f"{name}={quoted(value)} is not a whole number from 1 on")
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise CompressError(f"{name}={getattr(self, name)} is not a positive number")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise CompressError(
                f"min_learning_rate={self.min_learning_rate:g} is not between 0 and the learning rate"
                f" {self.learning_rate:g}"
            )
        if self.precision not in (None, "float32", "bfloat16"):
            raise CompressError(f"precision={quoted(self.precision)} is neither float32 nor bfloat16")
        if self.device not in (None, "cpu", "cuda"):
            raise CompressError(f"device={quoted(self.device)} is neither cpu nor cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise CompressError("device='cuda': PyTorch finds no GPU here")

    def number_of_steps(self, rows: int, processes: int = 1) -> int:
        """Raises CompressError for data that has less than one step."""
        taken = self.batch_size * self.accumulation * processes
        if rows < taken:
            among = f" in each of {processes} processes" if processes > 1 else ""
            raise CompressError(
                f"the data has {rows:,} rows and a step takes {taken:,}: {self.batch_size} in a batch,"
                f" {self.accumulation} batches{among}; give more text, or shorter or fewer rows"
            )
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * (rows // taken)))

    def warmup_steps(self, steps: int) -> int:
        return min(60, steps // 10) if self.warmup is None else self.warmup

    def where(self) -> torch.device:
        """The device that is trained on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def computes_in(self) -> torch.dtype:
        name = self.precision or ("bfloat16" if self.where().type == "cuda" else "float32")
        return torch.bfloat16 if name == "bfloat16" else torch.float32

    def arguments(self, folder: Path, steps: int, saves: bool) -> Any:
        """As ``transformers.TrainingArguments``: one process, one device, nothing reported elsewhere."""
        from transformers import TrainingArguments  # brings accelerate

        device = self.where()
        known: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": steps,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": self.min_learning_rate},
            "warmup_steps": self.warmup_steps(steps),
            "weight_decay": self.weight_decay,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "max_grad_norm": self.clip,
            "seed": self.seed,
            "bf16": self.computes_in() == torch.bfloat16,
            "use_cpu": device.type == "cpu",
            "logging_steps": self.log_every,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps" if saves else "no",
            "save_steps": self.save_every,
            "dataloader_drop_last": True,
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "report_to": "none",
        }
        try:
            arguments = TrainingArguments(**known | dict(self.more))
        except (TypeError, ValueError, ImportError) as error:
            raise CompressError(f"transformers refuses the options of training: {error}") from error
        arguments._n_gpu = min(1, arguments.n_gpu)  # more would be split among by nn.DataParallel
        return arguments
