"""Seconds that a model takes on the device where it is: to read prompts, and to generate so many tokens for each.

Timed beside the original, by turns (``fxcompress.timing``), so that their ratio can be trusted further than either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxcompress.export.choose import choose
from fxcompress.export.config import NotExpressible
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.searching.budget import Budget
from fxcompress.timing import Work
from fxcompress.verify import probe


def work(program: Program, steps: Sequence[Step], load: Budget) -> Work:
    """What is measured: ``generate`` with a cache where transformers has a model for the result, else the graph.

    load: batch, prompt and new tokens of a measured budget. Raises NotExpressible where there is nothing to generate.
    """
    inputs = dict(zip(program.inputs, probe(program, load.batch, load.prompt), strict=True))
    form = choose(program, steps).form
    if form is None:
        if load.new:
            kind = program.origin.model_class.__name__
            raise NotExpressible(f"{kind} has no generate of transformers: measure the prompt alone, with new=0")
        return lambda: program(**inputs)
    model = form.loaded().to(program.device)
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids)
    if not load.new:
        return lambda: model(input_ids=ids, attention_mask=mask, use_cache=True)
    length = {"min_new_tokens": load.new, "max_new_tokens": load.new}  # no end of text ends it early
    return lambda: model.generate(input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True, **length)
