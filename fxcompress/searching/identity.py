"""All that the outcome of a search depends on, as one hash: a journal counts for the same model and request alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxcompress.batches import Batch
from fxcompress.export.save import versions
from fxcompress.journal import key_of
from fxcompress.kept_statistics import digest, fingerprint
from fxcompress.read_score import criterion
from fxcompress.searching.space import Space
from fxcompress.source import Opened

if TYPE_CHECKING:
    from fxcompress.searching.run import Request


def key_of_search(request: Request, opened: Opened, space: Space, batches: Sequence[Batch]) -> str:
    """The hash of a search: model, calibration, budgets, space, profile, score, counts and versions."""
    return key_of(
        {
            "model": fingerprint(opened.program),
            "steps": [step.to_json() for step in opened.steps],
            "batches": digest(batches),
            "budgets": [str(budget) for budget in request.budgets],
            "space": {axis.name: axis.sizes for axis in space.choices},
            "layer_order": [space.layer_order, request.layer_order if isinstance(request.layer_order, str) else ""],
            "profile": vars(request.profile),
            "score": str(criterion(request.score)),
            "trials": request.trials,
            "best": request.best,
            "device": request.device,
            "text": None if request.text is None else request.text.model_dump(exclude={"file"}),
            "versions": versions(),
        }
    )
