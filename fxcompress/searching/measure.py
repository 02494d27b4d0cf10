"""What trials are ranked by: one figure of how well a model predicts."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.searching.trial import Trial


@dataclass(frozen=True)
class Measure:
    """``name``: "loss", or one of a trial's scores; ``said``: what it is, with its unit; ``high``: is more better?"""

    name: str
    said: str
    high: bool = False

    def of(self, trial: Trial) -> float | None:
        """None where it is not known."""
        return trial.loss if self.name == "loss" else trial.scores.get(self.name)

    def rank(self, trial: Trial) -> float:
        """Low is good."""
        value = self.of(trial)
        return float("inf") if value is None else -value if self.high else value


LOSS = Measure("loss", "zero-shot loss, nats a token")
