"""A program as a model of ours: ways of saying it are tried until one computes what the program does."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from fxcompress import compat
from fxcompress.errors import CompressError
from fxcompress.export.config import NotExpressible, _without_layers, with_fields
from fxcompress.export.form import Form, differences
from fxcompress.export.names import checkpoint_names, is_item, names_in_place, removed_layers, renumbered
from fxcompress.export.own.config import config_class
from fxcompress.export.own.find import Search, Target
from fxcompress.export.own.origin import Replay, replay
from fxcompress.export.own.spec import Spec, Stored
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.streamed import CPU
from fxcompress.token_fields import present_config

_TRIED = 16  # models that are compared


def to_own(program: Program, steps: Iterable[Step]) -> Any:
    """A model that ``AutoModelForCausalLM`` loads once fxcompress is imported: see ``own_form``."""
    return own_form(program, steps).loaded()


def own_form(program: Program, steps: Iterable[Step]) -> Form:
    """A model class and a config of ours for a program, checked to give its logits.

    Raises NotExpressible, with a sentence, when there is none.
    """
    origin, steps = program.origin, list(steps)
    if origin.config is None:
        raise NotExpressible(f"{origin.model_class.__name__} is a plain module: it has no config")
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(origin.config), None)
    if stock is not origin.model_class or origin.config.sub_configs:
        raise NotExpressible(f"{origin.model_class.__name__} is not what transformers makes of its config")
    try:
        past = replay(program, steps)
    except (CompressError, KeyError) as error:
        raise NotExpressible(f"the plan cannot be replayed on {stock.__name__}: {error}") from error
    why = f"no config of {stock.__name__} has the layers of the result"
    for form, reason in itertools.islice(_forms(program, steps, past), _TRIED):
        if not reason:
            return form
        why = f"{stock.__name__} with modules of their own sizes {reason}"
    raise NotExpressible(why)


def _forms(program: Program, steps: list[Step], past: Replay) -> Iterator[tuple[Form, str]]:
    """Forms with the program's shapes and what each does differently from it."""
    refusals, differs = [], differences(program)
    for search in _searches(program, steps, past):
        try:
            for spec in search.specs():
                for form in _built(search, spec, differs):
                    yield form, differs(form)
        except NotExpressible as refusal:
            refusals.append(str(refusal))
        except Exception as refusal:  # what a class says to a config may be any exception
            refusals.append(
                f"{search.stock.__name__} refuses modules of their own sizes: {str(refusal).splitlines()[0]}"
            )
    if refusals:
        raise NotExpressible(refusals[0])


def _searches(program: Program, steps: list[Step], past: Replay) -> Iterator[Search]:
    """Layers removed by the config where one says so, else left out where they stood."""
    parts = {path: law for path, law in past.gone.items() if not is_item(path)}
    items = [path for path in past.gone if is_item(path)]
    values = present_config(program)
    base, kind = type(program.origin.config).from_dict(values), program.origin.model_class
    names = checkpoint_names(program, steps)
    if not items:
        yield Search(kind, base, Target(program, names), past, parts)
        return
    with _quiet():
        for change in _without_layers(base, removed_layers(program, steps)):
            try:
                config = with_fields(base, change)
                here = {renumbered(p + ".", items)[:-1]: law for p, law in parts.items()}
                search = Search(kind, config, Target(program, names), past, here, tuple(items))
                fits = _has_names(search)
            except NotExpressible:
                raise
            except Exception:  # a validator's refusal may be any exception
                continue
            if fits:
                yield search
    yield Search(kind, base, Target(program, names_in_place(program, steps)), past, dict(past.gone))


def _has_names(search: Search) -> bool:
    """Has the model of this config the layers of the result?"""
    model, _ = search._built(search.config)
    stored, buffers = set(model.state_dict()), {name for name, _ in model.named_buffers()}
    gone = tuple(path + "." for path in search.gone)
    there = all(n in search.target.shapes or n.startswith(gone) or "norm" in n for n in stored)
    return there and search.target.shapes.keys() <= stored | buffers


def _built(search: Search, spec: Spec, differs: Callable[[Form], str]) -> Iterator[Form]:
    """Forms in which numbers and tensors that the class makes of sizes are the program's.

    A tensor of another shape may be the program's, or the class's where narrow projections keep the sizes within.
    """
    first = _form(search, spec)
    model = first.on_meta()
    compat.initialise_buffers(model, CPU)
    buffers, constants = _buffers(model, search.target), _constants(model, search)
    shaped = {name: b for name, b in buffers.items() if model.get_buffer(name).shape == b.shape}
    for stored in (buffers, shaped) if len(shaped) < len(buffers) else (buffers,):
        whole = spec.model_copy(update={"buffers": stored, "constants": constants})
        form = first if whole == spec else _form(search, whole)
        if _experts_refuse(form, differs):
            form = _form(search, whole.model_copy(update={"experts": "eager"}))
        yield form


def _experts_refuse(form: Form, differs: Callable[[Form], str]) -> bool:
    """Does the kernel that multiplies all experts at once refuse their sizes?"""
    one_kernel = form.on_meta().config._experts_implementation not in (None, "eager")
    return one_kernel and not form.program.is_meta and differs(form).startswith("does not run")


def _form(search: Search, spec: Spec) -> Form:
    config = _config(search, spec)
    form = Form(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, search.target.program, search.target.names)
    model = form.on_meta()
    lost = sorted(model.state_dict().keys() - search.target.shapes.keys() - model.all_tied_weights_keys.keys())
    if lost:
        raise NotExpressible(f"{lost[0]} of {type(model).__name__} is not in the result")
    return form


def _config(search: Search, spec: Spec) -> Any:
    """A config of ours whose fields are the model's own where the base's checks accept them."""
    whole = dict(spec.configs.get("", {}))
    base = search.config
    try:
        accepted = with_fields(base, whole)
        if all(getattr(accepted, k) == v and type(getattr(accepted, k)) is type(v) for k, v in whole.items()):
            base, whole = accepted, {}
    except Exception:  # a validator's refusal may be any exception
        pass
    configs = {k: v for k, v in spec.configs.items() if k} | ({"": whole} if whole else {})
    spec = spec.model_copy(update={"configs": configs})
    values = {**copy.deepcopy(base.to_dict()), "fxcompress": spec.to_json()}
    values.pop("model_type", None)
    return config_class(spec.base).from_dict(values)


def _buffers(model: nn.Module, target: Target) -> dict[str, Stored]:
    """Tensors that the class makes of sizes, where the program has others."""
    stored, program = set(model.state_dict()), target.program
    out = {}
    for name, now in model.named_buffers():
        if name in stored or name not in target.shapes:
            continue
        if target.shapes[name] != now.shape or not (program.is_meta or _close(program.read(target.names[name]), now)):
            dtype = str(program.state[target.names[name]].dtype).removeprefix("torch.")
            out[name] = Stored(shape=target.shapes[name], dtype=dtype)  # type: ignore[arg-type]
    return out


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.float().cpu(), theirs.float(), rtol=0, atol=0)


def _constants(model: nn.Module, search: Search) -> dict[str, float]:
    """Numbers that the class makes of sizes, as they were: passes change sizes and nothing else."""
    before = dict(search.replay.model.named_modules())
    items = list(search.removed)
    earlier = {renumbered(path + ".", items)[:-1]: m for path, m in before.items() if not _gone(path, items)}
    out = {}
    for path, module in model.named_modules():
        old = earlier.get(path)
        if old is None or isinstance(module, nn.Dropout):
            continue
        for name, value in module.__dict__.items():
            was = old.__dict__.get(name)
            if type(value) is float and type(was) is float and value != was:
                out[f"{path}.{name}"] = was
    return out


def _gone(path: str, items: Iterable[str]) -> bool:
    return any(path == item or path.startswith(item + ".") for item in items)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what configs that are only tried have to say."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
