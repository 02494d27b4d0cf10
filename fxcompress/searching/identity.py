"""All that the outcome of a search depends on, as one hash: a journal counts for the same model and request alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxcompress.export.save import versions
from fxcompress.journal import key_of
from fxcompress.program import Program
from fxcompress.searching.trial import Bench

if TYPE_CHECKING:
    from fxcompress.searching.run import Request


def key_of_search(request: Request, bench: Bench) -> str:
    """The hash of a search: model, calibration, budgets, space, profile, score, counts and versions."""
    return key_of(
        {
            "model": _digest(bench.program),
            "steps": [step.to_json() for step in bench.opened.steps],
            "batches": [{name: _digest_of(tensor) for name, tensor in batch.items()} for batch in bench.batches],
            "budgets": [str(budget) for budget in request.budgets],
            "space": {axis.name: axis.sizes for axis in bench.space.choices},
            "layer_order": bench.space.layer_order,
            "profile": vars(request.profile),
            "score": request.score,
            "trials": request.trials,
            "best": request.best,
            "text": None if request.text is None else request.text.model_dump(exclude={"file"}),
            "versions": versions(),
        }
    )


def _digest(program: Program) -> dict[str, Any]:
    """The graph with its constants, and every tensor."""
    weights = {name: _digest_of(program.read(name)) for name in program.state}
    return {"graph": hashlib.sha256(program.module.code.encode()).hexdigest(), "weights": weights}


def _digest_of(tensor: Tensor) -> str:
    digest = hashlib.sha256(repr((tuple(tensor.shape), tensor.dtype)).encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
