"""What loads a result: stock transformers where a config of the class says it, our model type, or its graph alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fxcompress.export.config import NotExpressible
from fxcompress.export.form import Form, find_form
from fxcompress.export.own import own_form
from fxcompress.plan import Step
from fxcompress.program import Program

LoadsWith: TypeAlias = Literal["transformers", "fxcompress", "graph"]

SAID: dict[str, str] = {
    "transformers": "it loads with transformers.AutoModelForCausalLM.from_pretrained",
    "fxcompress": "it loads with transformers.AutoModelForCausalLM.from_pretrained once fxcompress is imported",
    "graph": "it loads with fxcompress.load alone",
}


@dataclass(frozen=True)
class Choice:
    """``form`` is None where only the graph says the result; ``why`` the better ways are closed."""

    loads_with: LoadsWith
    form: Form | None
    why: str = ""


def choose(program: Program, steps: Sequence[Step]) -> Choice:
    """The best way to load a result."""
    try:
        return Choice("transformers", find_form(program, steps))
    except NotExpressible as refusal:
        why = str(refusal)
    try:
        return Choice("fxcompress", own_form(program, steps), why)
    except NotExpressible as refusal:
        return Choice("graph", None, why if str(refusal) == why else f"{why}; {refusal}")
