"""All that the outcome of a search depends on, as one hash: a journal counts for the same model and request alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxcompress.batches import Batch
from fxcompress.export.save import versions
from fxcompress.journal import key_of
from fxcompress.kept_statistics import digest, fingerprint
from fxcompress.recipe import Calibration
from fxcompress.source import Opened


def key_of_search(opened: Opened, batches: Sequence[Batch], text: Calibration | None, asked: Mapping[str, Any]) -> str:
    """The hash of a search: model, calibration, versions, and what is asked for, which is JSON."""
    return key_of(
        {
            "model": fingerprint(opened.program),
            "steps": [step.to_json() for step in opened.steps],
            "batches": digest(batches),
            "text": None if text is None else text.model_dump(exclude={"file"}),
            "asked": dict(asked),
            "versions": versions(),
        }
    )
