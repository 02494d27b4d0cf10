"""Pruned models with sparse kernels everywhere, and a clock that says what a test wants."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

import fxcompress
from fxcompress import timing
from fxcompress.passes import PruneWeights, UseSparseKernels
from tests import models

FAMILIES = ["llama", "gpt2", "nemotron_h", "mixtral", "mamba"]
UP = "model.layers.0.mlp.up_proj.weight"


@functools.cache
def pruned(name: str = "llama", dtype: torch.dtype = torch.float32, **options) -> fxcompress.CompressedModel:
    passes = [PruneWeights(method="magnitude", **options or {"sparsity": 0.9})]
    model = models.captured(name, dtype) if dtype == torch.float32 else models.tiny(name).to(dtype)
    return fxcompress.apply(model, passes)


@functools.cache
def everywhere(name: str = "llama") -> fxcompress.CompressedModel:
    """The pruned model with a sparse op wherever one can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "compare", lambda *_: (0.5, 1.0))
        return fxcompress.apply(pruned(name), [UseSparseKernels(length=16)])


@pytest.fixture
def clock(monkeypatch) -> Callable[..., list]:
    """Set what is measured: seconds of sparse work where dense takes one, by tokens of a sequence. Both run, once."""

    def set_to(seconds: float | Callable[[int], float], whole: float | None = None) -> list:
        timed = []

        def compare(sparse, dense, device, runs=5):
            first = sparse.args[0]
            assert sparse().__class__ == dense().__class__
            alone = first.is_floating_point()
            timed.append(tuple(first.shape))
            taken = seconds(first.shape[1]) if callable(seconds) else seconds
            return (taken if alone or whole is None else whole), 1.0

        monkeypatch.setattr(timing, "compare", compare)
        return timed

    return set_to


def ops(program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=models.ids(2, 9) if ids is None else ids).logits


def rows(small) -> dict:
    return {row["key"]: row for row in small.report.passes[-1]["rows"]}
