"""With which arguments each module of a model was constructed, so that it can be constructed again with others.

Classes take what they like: (config, layer_idx), (inner, config), (in_features, out_features, bias). While a model is
built, the constructors of its modules' classes write down what they were given; they are put back afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

Build = Callable[[], nn.Module]
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Call:
    """The construction of one module: its class and its arguments by name."""

    kind: type[nn.Module]
    given: inspect.BoundArguments

    @property
    def config(self) -> Any:
        """The config that it took, None if it took none."""
        return next((v for v in self.given.arguments.values() if isinstance(v, PreTrainedConfig)), None)

    @property
    def sizes(self) -> dict[str, int]:
        """Its integer arguments; a position in the list of layers is no size."""
        found = {k: v for k, v in self.given.arguments.items() if type(v) is int}
        return {k: v for k, v in found.items() if not k.endswith(("_idx", "_id", "index"))}

    def again(self, config: Any = None, sizes: Mapping[str, int] | None = None) -> Any:
        """Construct it once more, with another config and other sizes."""
        args = dict(self.given.arguments) | dict(sizes or {})
        if config is not None:
            args = {k: config if isinstance(v, PreTrainedConfig) else v for k, v in args.items()}
        again = inspect.BoundArguments(self.given.signature, args)  # type: ignore[arg-type]
        return self.kind(*again.args, **again.kwargs)


Calls = dict[nn.Module, Call]


def module_classes(build: Build) -> set[type[nn.Module]]:
    """The classes of all modules of a model, seen on a copy without values."""
    with torch.device("meta"):
        return {type(module) for module in build().modules()}


@contextlib.contextmanager
def recording(classes: Iterable[type[nn.Module]]) -> Iterator[Calls]:
    """Write down the constructions of modules of these classes in this thread while the block runs."""
    calls: Calls = {}
    with _LOCK:
        saved = {kind: kind.__dict__.get("__init__") for kind in classes}
        try:
            for kind in saved:
                kind.__init__ = _recorded(kind.__init__, calls, threading.get_ident())  # type: ignore[method-assign, misc]
            yield calls
        finally:
            for kind, own in saved.items():
                if own is None:
                    del kind.__init__
                else:
                    kind.__init__ = own  # type: ignore[method-assign, misc]


def _recorded(init: Callable[..., None], calls: Calls, thread: int) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread and self not in calls:  # else a class that this one derives from
            bound = signature.bind(self, *args, **kwargs)
            first = next(iter(bound.arguments))
            del bound.arguments[first]
            rest = [p for name, p in signature.parameters.items() if name != first]
            given = inspect.BoundArguments(signature.replace(parameters=rest), bound.arguments)  # type: ignore[arg-type]
            calls[self] = Call(type(self), given)
        init(self, *args, **kwargs)

    return __init__
