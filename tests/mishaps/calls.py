"""What Python gives to ``compress``, ``apply`` and ``save_pretrained`` is of another kind, or cannot be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import fxcompress
from fxcompress.passes import PruneEmbedding, PruneFFN, PruneWeights, RemoveLayers
from tests.mishaps.place import HALVED, Mishap, Place, module


def python(**options: Any) -> Callable[[Place], object]:
    """``fxcompress.compress`` from Python, with something in place of what it should have."""

    def ask(place: Place) -> object:
        values: dict[str, Any] = {"model": place.model, "out": place.out, "passes": [HALVED]} | options
        return fxcompress.compress(**values)

    return ask


def applied(*passes: object, **options: Any) -> Callable[[Place], object]:
    return lambda place: fxcompress.apply(module(), list(passes), **options)


def saved(**options: Any) -> Callable[[Place], object]:
    return lambda place: fxcompress.apply(module(), [HALVED]).save_pretrained(place.out, **options)


def filled(place: Place) -> object:
    """What training without the masks would leave."""
    small = fxcompress.apply(module(), [MAGNITUDE])
    small.program.state["model.layers.0.mlp.up_proj.weight"].data.add_(0.01)
    return small.save_pretrained(place.out)


MAGNITUDE = PruneWeights(sparsity=0.5, method="magnitude", targets="*.up_proj.weight")
IDS = torch.ones(2, 8, dtype=torch.long)
BLIND = PruneFFN(ratio=0.5, score="activation")
case = partial(Mishap, "calls", ends="CompressError")

MISHAPS = (
    case(
        "a pass that is not in a list",
        "passes are given in a list, [PruneFFN(ratio=0.25)], not as PruneFFN(",
        ask=python(passes=HALVED),
    ),
    case("passes as texts", "'PruneFFN(ratio=0.5)' is no pass", ask=python(passes=["PruneFFN(ratio=0.5)"])),
    case(
        "a pass that is a class", "is no pass: passes are objects, PruneFFN(ratio=0.25)", ask=python(passes=[PruneFFN])
    ),
    case(
        "a model in memory for a directory",
        "LlamaForCausalLM is no path and no id; fxcompress.apply takes models in memory",
        ask=lambda p: python(model=module())(p),
    ),
    case("a target that there is not, from Python", "target='onnx' is unknown", ask=python(target="onnx")),
    case("shards below nought", "max_shard_size=-1 is no size", ask=python(max_shard_size=-1)),
    case("shards below nought, saved", "max_shard_size=-1 is no size", ask=saved(max_shard_size=-1)),
    case("a revision of a directory", "is a path and has no revision", ask=python(revision="main")),
    case(
        "calibration without a batch", "the calibration data has no batch", ask=python(passes=[BLIND], calibration=[])
    ),
    case(
        "calibration missing, from Python",
        "PruneFFN scores by activations: pass calibration=, batches of token ids",
        ask=applied(BLIND),
    ),
    case(
        "calibration that is a text",
        "calibration is a list of batches, not 'text.txt'",
        ask=applied(BLIND, calibration="text.txt"),
    ),
    case(
        "calibration of lists",
        "a batch is token ids (batch, length), or a dict of tensors, not [1, 2, 3]",
        ask=applied(BLIND, calibration=[[1, 2, 3]]),
    ),
    case(
        "calibration of one dim",
        "calibration ids have shape (8,), not (samples, length)",
        ask=applied(BLIND, calibration=IDS[0]),
    ),
    case(
        "calibration of fractions",
        "token ids are torch.float32 (2, 8), not whole numbers",
        ask=applied(BLIND, calibration=[IDS.float()]),
    ),
    case(
        "ids that the model has not",
        "the model has 96 ids",
        ask=applied(BLIND, calibration=[IDS * 96]),
    ),
    case("ids below nought", "has the token id -1, the model has 96 ids", ask=applied(BLIND, calibration=[-IDS])),
    case(
        "ids that the model has not, from files",
        "the model has 96 ids",
        ask=python(passes=[BLIND], calibration=[IDS * 96]),
    ),
    case(
        "ids below nought, from files",
        "has the token id -1, the model has 96 ids",
        ask=python(passes=[BLIND], calibration=[-IDS]),
    ),
    case(
        "batches with inputs of another name",
        "unexpected inputs ['ids']; this program takes",
        ask=applied(BLIND, calibration=[{"ids": IDS}]),
    ),
    case(
        "scores of another shape",
        "the scores have shape (3,)",
        ask=applied(PruneFFN(ratio=0.5, score=lambda program, group: torch.ones(3))),
    ),
    case(
        "scores that are NaN",
        "the scores are not finite",
        ask=applied(PruneFFN(ratio=0.5, score=lambda program, group: torch.full(group.sizes, torch.nan))),
    ),
    case(
        "scores that are no tensor",
        "not a tensor of shape (80,)",
        ask=applied(PruneFFN(ratio=0.5, score=lambda program, group: [1.0] * 80)),
    ),
    case("scores of other groups", "score= has no tensor for the group", ask=applied(PruneFFN(ratio=0.5, score={}))),
    case(
        "weights cut after they were pruned",
        "PruneFFN (structure) after PruneWeights (weights) would undo it",
        ask=applied(MAGNITUDE, HALVED),
    ),
    case(
        "zeros that were filled after the pruning",
        "was pruned to 0.5, and 1,920 weights that have to be zero are not",
        ask=filled,
    ),
    case(
        "a result that stock transformers cannot load, asked for",
        "model.embed_tokens.weight of (96, 48) would have to be (96, 47)",
        ask=python(passes=[PruneEmbedding(size=47)], target="transformers"),
        ends="NotExpressible",
    ),
    case(
        "more layers removed than there are",
        "layer 1 is out of range, the model has 1",
        ask=python(passes=[RemoveLayers(layers=(0, 1, 2))]),
    ),
)
