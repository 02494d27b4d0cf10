"""The config of ours for a program: the whole model's fields, each module's, what is absent, narrow or stored.

    shared      the width of the stream and the vocabulary, from the tensors outside the lists of layers
    own         each module that takes a config and still has wrong shapes, from its own copy of it
    narrow      what no config says (queries of another width than values): projections that skip positions
    lifted      fields that all such modules share are the model's again

Found on ``meta``. Several findings may have the right shapes; the caller compares what they compute.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fxcompress.axes import AxisMap
from fxcompress.axis import leaves
from fxcompress.export.config import NotExpressible, Probe, Shapes, Wanted
from fxcompress.export.own.model import assemble, changed, module_at
from fxcompress.export.own.origin import Replay
from fxcompress.export.own.part import Change, Part, leaf_sizes
from fxcompress.export.own.record import Calls, module_classes, recording
from fxcompress.export.own.spec import Absent, Narrow, Spec
from fxcompress.plan import write_ranges
from fxcompress.program import Program

_COMBINATIONS = 24  # of candidates of different kinds of modules


@dataclass
class Target:
    """The program's tensors by their names in the checkpoint: shapes, dims on the stream, sizes of axes."""

    program: Program
    names: Mapping[str, str]  # every name in the checkpoint -> the tensor's name in the program
    shapes: Shapes = field(init=False)
    _stream: dict[str, frozenset[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.program.state
        self.shapes = {name: tuple(state[old].shape) for name, old in self.names.items() if old in state}

    def dims(self) -> Iterator[tuple[str, tuple]]:
        """The dims of every tensor, under each of its names."""
        state = self.program.get(AxisMap).state
        yield from ((name, state[old]) for name, old in self.names.items() if old in state)

    def on_stream(self, name: str) -> frozenset[int]:
        """The dims of a tensor that are the residual stream's."""
        if not self._stream:
            roles = self.program.get(AxisMap).roles
            for each, dims in self.dims():
                stream = (i for i, dim in enumerate(dims) if any("residual" in roles.get(a, ()) for a in leaves(dim)))
                self._stream[each] = frozenset(stream)
        return self._stream.get(name, frozenset())

    def axes_under(self, path: str) -> tuple[int, ...]:
        """The sizes of the axes of a module's tensors."""
        roles = self.program.get(AxisMap).roles
        under = (dim for name, dims in self.dims() if name.startswith(path + ".") for dim in dims)
        found = {a.size for dim in under for a in leaves(dim) if "residual" not in roles.get(a, ())}
        return tuple(sorted(int(size) for size in found))


@dataclass
class Search:
    """Everything found so far about one way of saying the result."""

    stock: type
    config: Any
    target: Target
    replay: Replay
    gone: Mapping[str, Absent]
    removed: tuple[str, ...] = ()  # layers that the config leaves out

    def specs(self) -> Iterator[Spec]:
        """Specs with the target's shapes, the likeliest first. Raises NotExpressible where a tensor has none."""
        base = self.config.model_type
        shared = self._shared()
        model, calls = self._built(changed(self.config, shared, "the model"))
        gone = {**self.gone, **self._unread(model)}
        kinds = self._kinds(model, calls, shared, gone)
        for choice in itertools.islice(_choices([found for _, found in kinds]), _COMBINATIONS):
            own = {path: change for (paths, _), change in zip(kinds, choice, strict=True) for path in paths}
            spec = _spec(base, shared, own, gone)
            yield from filter(None, (self._lifted(spec), spec))

    def _built(self, config: Any) -> tuple[nn.Module, Calls]:
        kind: Any = self.stock
        classes = module_classes(lambda: kind(config)) - {self.stock}
        with recording(classes) as calls, torch.device("meta"):
            return kind(config), calls

    def _shared(self) -> dict[str, Any]:
        """Fields of the whole model for the tensors that are in no list of layers."""
        outside = {n: s for n, s in self.target.shapes.items() if not any(part.isdigit() for part in n.split("."))}

        def build(changes: Mapping[str, Any]) -> Shapes:
            kind: Any = self.stock
            return shapes_of(kind(changed(self.config, changes, "the model")), outside, strict=True)

        numbers = {k: v for k, v in self.config.__dict__.items() if type(v) is int and not k.startswith("_")}
        outside = {n: s for n, s in outside.items() if n in shapes_of(self._built(self.config)[0], outside)}
        return next(Probe(build, numbers, self.stock.__name__).solve({}, outside), {})

    def _unread(self, model: nn.Module) -> dict[str, Absent]:
        """Norms of what is gone: modules of the model whose parameters the program has none of."""
        out = {}
        tied = getattr(model, "all_tied_weights_keys", {})
        for path, module in model.named_modules():
            mine = [f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)]
            under = any(path == p or path.startswith(p + ".") for p in self.gone)
            if (
                mine
                and not under
                and not any(n in self.target.shapes or tied.get(n) in self.target.shapes for n in mine)
            ):
                if next(module.children(), None) is not None:
                    raise NotExpressible(f"{path} has lost its tensors, and no config says so")
                out[path] = Absent(law="pass")
        return out

    def _kinds(
        self, model: nn.Module, calls: Calls, shared: Mapping[str, Any], gone: Iterable[str]
    ) -> list[tuple[list[str], list[Change | dict]]]:
        """Modules with wrong shapes, those of one kind together, and the changes that may be theirs."""
        wanted = self._stored(model, gone)
        todo: dict[str, None] = {}
        for name in self._wrong(model, wanted):
            todo.setdefault(_owner_with_config(model, calls, name), None)
        kinds: dict[str, tuple[list[str], list]] = {}
        done: list[nn.Module] = []
        for path in sorted(todo, key=lambda p: p.count(".")):
            module = module_at(model, path)
            if any(module is other for other in done):  # shared: it is done where it stands first
                continue
            done.append(module)
            kind, found = self._candidates(model, calls, path, shared, wanted)
            kinds.setdefault(kind, ([], found))[0].append(path)
        return list(kinds.values())

    def _wrong(self, model: nn.Module, wanted: Shapes) -> list[str]:
        now = shapes_of(model, wanted)
        return [name for name, shape in wanted.items() if name in now and now[name] != shape]

    def _candidates(
        self, model: nn.Module, calls: Calls, path: str, shared: Mapping[str, Any], wanted: Shapes
    ) -> tuple[str, list]:
        """Ways in which a module has the wanted shapes: by its config, else by projections that skip positions."""
        module = module_at(model, path)
        mine = {n.removeprefix(path + "."): s for n, s in wanted.items() if n.startswith(path + ".")}
        mine = {n: s for n, s in mine.items() if n in shapes_of(module, mine)}
        inner = {
            n: tuple(None if i in self.target.on_stream(f"{path}.{n}") else k for i, k in enumerate(s))
            for n, s in mine.items()
        }
        axes = self.target.axes_under(path)
        found: list = []
        kind = repr(
            (type(module).__name__, mine, inner, axes, sorted(calls[module].sizes.items()) if module in calls else path)
        )
        if kind in self._known:
            return kind, self._known[kind]
        if module in calls and calls[module].config is not None and not isinstance(module, PreTrainedModel):
            found = list(Part(path, calls[module], mine, shared).candidates(inner, axes))
        if not found:
            kind, found = path, self._narrowed(model, calls, path, shared, mine, inner)
        self._known[kind] = found
        return kind, found

    def __post_init__(self) -> None:
        self._known: dict[str, list] = {}

    def _narrowed(
        self, model: nn.Module, calls: Calls, path: str, shared: Mapping[str, Any], mine: Shapes, inner: Wanted
    ) -> list[dict[str, Any]]:
        """A module of the original's sizes within, whose projections skip what was cut."""
        module = module_at(model, path)
        call = calls.get(module)
        fields: dict[str, Any] = {}
        if call is not None and call.config is not None and not isinstance(module, PreTrainedModel):
            numbers = {k: getattr(self.config, k, None) for k in shared}
            fields = {k: v for k, v in numbers.items() if v is not None}
            with recording({type(m) for m in module.modules()}) as calls, torch.device("meta"):
                module = call.again(changed(call.config, fields, path))
        sizes: dict[str, dict[str, int]] = {}
        narrow: dict[str, Narrow] = {}
        now = shapes_of(module, mine)
        for name in [n for n, shape in mine.items() if now[n] != shape]:
            owner = name.rpartition(".")[0]
            full = f"{path}.{owner}" if owner else path
            if full in sizes:
                continue
            leaf = module.get_submodule(owner)
            found = leaf_sizes(leaf, calls, owner, mine)
            if found is None:
                raise NotExpressible(self._explained(full, name, now[name], mine[name]))
            sizes[full] = found
            with torch.device("meta"):
                law = self._positions(leaf, calls[leaf].again(None, _uneven(found)), owner, path, mine, inner)
            if law is not None:
                narrow[full] = law
        change = {"configs": {path: fields} if fields else {}, "arguments": sizes, "narrow": narrow}
        return [change] if call is not None and call.config is not None else [{**change, "narrow": {}}, change]

    def _explained(self, path: str, name: str, now: tuple, wanted: tuple) -> str:
        kind = self.stock.__name__
        return (
            f"no config of {kind} or of its modules has the shapes of the result: {path} has"
            f" {name.rpartition('.')[2]} of {now}, which would have to be {wanted}"
        )

    def _positions(
        self, leaf: nn.Module, uneven: nn.Module, owner: str, path: str, mine: Shapes, inner: Wanted
    ) -> Narrow | None:
        """Which positions of its input and output a projection still has; None where only the stream's width changed.

        ``uneven``: the projection with an input and an output of different width, which tells its dims apart.
        """
        weight = f"{owner}.weight" if owner else "weight"
        shape, old = mine[weight], leaf.get_parameter("weight").shape
        kept = self._kept(f"{path}.{weight}")
        cut = {i for i in kept if inner[weight][i] is not None}
        if not cut:
            return None
        at = _input_and_output(uneven)
        lost = [i for i in cut if kept[i] is None or len(kept[i]) != shape[i]]  # type: ignore[arg-type]
        if at is None or lost:
            raise NotExpressible(self._explained(f"{path}.{owner}".removesuffix("."), weight, tuple(old), shape))
        reads, gives = (write_ranges(kept[i]) if i in cut else None for i in at)  # type: ignore[arg-type]
        return Narrow(reads=reads, gives=gives, width=old[at[1]] if gives else 0)

    def _kept(self, name: str) -> dict[int, Tensor | None]:
        """The positions left of the original's dims, by any of the tensor's names."""
        return self.replay.kept.get(self.target.names.get(name, name), {})

    def _lifted(self, spec: Spec) -> Spec | None:
        """Fields that no two modules disagree on, as the whole model's; None where the shapes are others then."""
        merged: dict[str, Any] = {}
        for path, fields in spec.configs.items():
            for name, value in fields.items() if path else ():
                if merged.setdefault(name, value) != value:
                    return None
        if not merged:
            return None
        whole = {**spec.configs.get("", {}), **merged}
        lifted = spec.model_copy(update={"configs": {"": whole}})
        try:
            return lifted if not self._misfits(lifted) else None
        except Exception:  # a class may refuse its config with any exception
            return None

    def _misfits(self, spec: Spec) -> list[str]:
        kind: Any = self.stock
        config = changed(self.config, spec.configs.get("", {}), "the model")
        classes = module_classes(lambda: kind(config)) - {self.stock}
        with torch.device("meta"), recording(classes) as calls:
            model = kind(config)
            assemble(model, spec, calls)
        return self._wrong(model, self._stored(model, spec.absent))

    def _stored(self, model: nn.Module, gone: Iterable[str]) -> Shapes:
        """The target's tensors that a checkpoint of the class holds: others the class makes of sizes."""
        stored = set(model.state_dict())
        return {n: s for n, s in self.target.shapes.items() if n in stored and not _under(n, gone)}


def _choices(kinds: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """One candidate for each kind: first those that set the same fields everywhere, for all layers were cut alike."""
    ranks: dict[str, int] = {}
    for found in kinds:
        named = {_fields_of(candidate): rank for rank, candidate in reversed(list(enumerate(found)))}
        for fields in named.keys() | ranks.keys():
            ranks[fields] = ranks.get(fields, 0) + named.get(fields, len(found))
    for fields in sorted(ranks, key=lambda fields: (ranks[fields], fields)):
        yield tuple(next((c for c in found if _fields_of(c) == fields), found[0]) for found in kinds)
    yield from itertools.product(*kinds)


def _fields_of(candidate: Any) -> str:
    return repr(sorted([*candidate.fields, *candidate.sizes])) if isinstance(candidate, Change) else "narrow"


def shapes_of(module: nn.Module, names: Iterable[str], strict: bool = False) -> Shapes:
    """Shapes of a module's tensors among the names; all of its tensors' where ``strict``, so that a new one shows."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    found = {name: tuple(t.shape) for name, t in tensors}
    missing = [name for name in names if name not in found]
    if strict and missing:
        raise NotExpressible(f"the model has no {missing[0]}")
    return {name: found[name] for name in names if name in found}


def _input_and_output(leaf: nn.Module) -> tuple[int, int] | None:
    """The dims of a projection's weight that are its input and its output, seen by calling it; None if it is none."""
    weight = leaf.get_parameter("weight")
    places = [(0, 0)] if weight.dim() == 1 else [(1, 0), (0, 1)]
    if weight.dim() > 2:
        return None
    if isinstance(leaf, nn.Linear):
        return (1, 0)
    for reads, gives in places:
        try:
            out = leaf(torch.empty(1, 2, weight.shape[reads], device="meta"))
        except RuntimeError:
            continue
        if isinstance(out, Tensor) and out.shape == (1, 2, weight.shape[gives]):
            return (reads, gives)
    return None


def _uneven(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of which no two are equal."""
    return {name: size + i * 1009 for i, (name, size) in enumerate(sorted(sizes.items()))}


def _owner_with_config(model: nn.Module, calls: Calls, name: str) -> str:
    """The innermost module around a tensor that takes a config; the tensor's own module where only models do."""
    own = path = name.rpartition(".")[0]
    while path:
        module = model.get_submodule(path)
        if module in calls and calls[module].config is not None and not isinstance(module, PreTrainedModel):
            return path
        path = path.rpartition(".")[0]
    return own


def _under(name: str, paths: Iterable[str]) -> bool:
    return name.startswith(tuple(path + "." for path in paths))


def _spec(base: str, shared: Mapping[str, Any], own: Mapping[str, Any], gone: Mapping[str, Absent]) -> Spec:
    configs: dict[str, Any] = {"": dict(shared)} if shared else {}
    arguments: dict[str, Any] = {}
    narrow: dict[str, Narrow] = {}
    for path, change in own.items():
        if isinstance(change, Change):
            configs |= {path: dict(change.fields)} if change.fields else {}
            arguments |= {path: dict(change.sizes)} if change.sizes else {}
            arguments |= {f"{path}.{inner}": dict(sizes) for inner, sizes in change.within.items()}
        else:
            configs |= change["configs"]
            arguments |= change["arguments"]
            narrow |= change["narrow"]
    return Spec(base=base, configs=configs, arguments=arguments, narrow=narrow, absent=dict(gone))
