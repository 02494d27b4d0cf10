"""The model card of a reference model: what it is, how it was trained, how good it is, in measured figures."""

from __future__ import annotations

import platform
from typing import Any

import torch
from reference.sizes import Size, flops_per_token
from transformers import PreTrainedModel

TEXT = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: transformers
---

# {title}

A small language model, trained from random weights to try compression on. It writes sentences in the manner of old
novels and knows nothing; it is of no use as it is.

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters:,} |
| FLOPs a token, forward, at {length} tokens | {flops:,} |
| vocabulary | {vocabulary:,} byte pairs, found in the training text |
| trained on | {tokens:,} tokens: {epochs:.1f} epochs of English novels, public domain |
| tokens a parameter | {ratio:.1f} |
| length, batch | {length} tokens, {batch:,} tokens a step |
| optimiser | AdamW (0.9, 0.99), weight decay 0.1, gradients cut at norm 1, float32 weights, bfloat16 products |
| learning rate | {rate:g}: {schedule} |
| **held out** | **{bits:.4f} bits per byte** on novels by other authors, this checkpoint in bfloat16, all of the text |
| over the last fifth | {gain:+.2%} of held-out bits per byte, on a part of the text |
| made with | torch {torch}, {machine} |

Each window of {length} tokens is judged by itself, so its first tokens have little before them; longer texts were not
seen in training.

Learning rates were compared {compared}: {trials}.

| tokens | held-out bits per byte, on a part of the text |
|---|---|
{rows}
"""


def write(
    model: PreTrainedModel,
    size: Size,
    history: list[dict[str, Any]],
    rate: float,
    rates: dict[float, float],
    bits: float,
    epochs: float,
) -> str:
    """The card. ``rates``: bits per byte at the end of the trial of each; ``bits``: of the model as it is saved."""
    parameters, tokens = model.num_parameters(), history[-1]["tokens"]
    trial = f"in runs of {size.trial_steps * size.rows * size.length:,} tokens each"
    return TEXT.format(
        title=f"Reference model: {type(model).__name__}",
        architecture=type(model).__name__,
        parameters=parameters,
        flops=flops_per_token(model, size, size.length / 2),
        vocabulary=size.vocabulary,
        tokens=tokens,
        epochs=epochs,
        ratio=tokens / parameters,
        length=size.length,
        batch=size.rows * size.length,
        rate=rate,
        schedule="up to it over the first 2 % of the steps, down a half-cosine to a fiftieth at 90 %, then level",
        bits=bits,
        gain=last_fifth(history),
        torch=torch.__version__,
        machine=torch.cuda.get_device_name() if torch.cuda.is_available() else f"one thread of {platform.machine()}",
        compared="in full" if size.trial_steps == size.steps else trial,
        trials=", ".join(f"{r:g} gives {b:.4f}" for r, b in rates.items()),
        rows="\n".join(f"| {row['tokens']:,} | {row['bits_per_byte']:.4f} |" for row in history),
    )


def last_fifth(history: list[dict[str, Any]]) -> float:
    """How much lower bits per byte are at the end than at four fifths of the steps, as a part; negative if lower."""
    before = next(row for row in history if row["step"] >= 0.8 * history[-1]["step"])
    return history[-1]["bits_per_byte"] / before["bits_per_byte"] - 1
