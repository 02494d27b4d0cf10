"""``torch.compile(model, backend="fxcompress")``: our ops registered, the graph handed to Inductor.

Options that begin with ``fxcompress.`` are ours (there are none yet), the others are Inductor's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx

import fxcompress.kernels as _  # noqa: F401  (registers the ops)


def fxcompress(
    gm: fx.GraphModule,
    example_inputs: list[torch.Tensor],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable:
    """The compile function that Dynamo calls with each graph."""
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    given = dict(list_mode_options(mode) if mode else options or {})
    ours = sorted(name for name in given if name.startswith("fxcompress."))
    if ours:
        raise ValueError(f"unknown options of the fxcompress backend: {', '.join(ours)}")
    return cast(Callable, compile_fx(gm, example_inputs, config_patches=given or None))
