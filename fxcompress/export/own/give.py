"""A program as a model of ours: ways of saying it are tried until one computes what the program does."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from fxcompress.errors import CompressError
from fxcompress.export.config import NotExpressible, _without_layers, with_fields
from fxcompress.export.own.config import config_class
from fxcompress.export.own.find import Search, Target
from fxcompress.export.own.origin import Replay, replay
from fxcompress.export.own.spec import Absent, Spec, Stored
from fxcompress.export.transformers import (
    _dtype,
    _generation_config,
    _why_not,
    _with_aliases,
    file_tensors,
    is_item,
    removed_layers,
    renumbered,
    renumbering,
)
from fxcompress.plan import Step
from fxcompress.program import Program
from fxcompress.token_fields import present_config

_TRIED = 16  # models that are compared


def own_config(program: Program, steps: Iterable[Step]) -> Any:
    """The config of ours for a program. Raises NotExpressible, with a sentence, when there is none."""
    return to_own(program, steps).config


def to_own(program: Program, steps: Iterable[Step]) -> Any:
    """A model that ``AutoModelForCausalLM`` loads once fxcompress is imported, checked to give the program's logits."""
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
    for model, reason in itertools.islice(_models(program, steps, past), _TRIED):
        if not reason:
            return model
        why = f"{stock.__name__} with modules of their own sizes {reason}"
    raise NotExpressible(why)


def _models(program: Program, steps: list[Step], past: Replay) -> Iterator[tuple[Any, str]]:
    """Models with the program's shapes and what each does differently from it."""
    refusals = []
    for search, weights in _searches(program, steps, past):
        try:
            for spec in search.specs():
                for model in _built(program, search, spec, weights):
                    yield model, _why_not(program, model)
        except NotExpressible as refusal:
            refusals.append(str(refusal))
        except Exception as refusal:  # what a class says to a config may be any exception
            refusals.append(
                f"{search.stock.__name__} refuses modules of their own sizes: {str(refusal).splitlines()[0]}"
            )
    if refusals:
        raise NotExpressible(refusals[0])


def _searches(program: Program, steps: list[Step], past: Replay) -> Iterator[tuple[Search, dict[str, Tensor]]]:
    """Layers removed by the config where one says so, else left out where they stood."""
    parts = {path: law for path, law in past.gone.items() if not is_item(path)}
    items = [path for path in past.gone if is_item(path)]
    values = present_config(program)
    base = type(program.origin.config).from_dict(values)
    names = renumbering(program, steps)
    if not items:
        yield _search(program, past, base, names, parts)
        return
    with _quiet():
        for change in _without_layers(base, removed_layers(program, steps)):
            try:
                config = with_fields(base, change)
                here = {renumbered(p + ".", items)[:-1]: law for p, law in parts.items()}
                search, weights = _search(program, past, config, names, here, items)
                fits = _has_names(search, weights)
            except NotExpressible:
                raise
            except Exception:  # a validator's refusal may be any exception
                continue
            if fits:
                yield search, weights
    plain = {}
    for name in names:  # a shared tensor has another owner where its first one is gone
        owners = (n for n in program.names.get(name, (name,)) if not any(_gone(n, [item]) for item in items))
        plain[name] = next(owners, name)
    yield _search(program, past, base, plain, dict(past.gone))


def _search(
    program: Program,
    past: Replay,
    config: Any,
    names: Mapping[str, str],
    gone: Mapping[str, Absent],
    items: Iterable[str] = (),
) -> tuple[Search, dict[str, Tensor]]:
    """``items``: layers that the config leaves out, so that those behind them have other numbers."""
    tensors = file_tensors(program, dict(names))
    shapes = {n: tuple(t.shape) for n, t in _with_aliases(program, dict(names), tensors).items()}
    target = Target(program, names, shapes)
    originals = {new: old for old, new in names.items()}
    return Search(program.origin.model_class, config, target, past, gone, originals, tuple(items)), tensors


def _has_names(search: Search, weights: Mapping[str, Tensor]) -> bool:
    """Has the model of this config the layers of the result?"""
    model, _ = search._built(search.config)
    stored = set(model.state_dict())
    wanted = {n for n in search.target.shapes if n in stored}
    gone = tuple(path + "." for path in search.gone)
    return all(n in wanted or n.startswith(gone) or "norm" in n for n in stored) and not (
        {n for n in weights if n not in stored} - {n for n, _ in model.named_buffers()}
    )


def _built(program: Program, search: Search, spec: Spec, weights: Mapping[str, Tensor]) -> Iterator[Any]:
    """Models with the program's weights; numbers and tensors that the class makes of sizes are the program's.

    A tensor of another shape may be the program's, or the class's where narrow projections keep the sizes within.
    """
    first = _load(program, _config(search, spec), weights)
    buffers, constants = _buffers(first, weights), _constants(first, search)
    shaped = {name: b for name, b in buffers.items() if first.get_buffer(name).shape == b.shape}
    for stored in (buffers, shaped) if len(shaped) < len(buffers) else (buffers,):
        whole = spec.model_copy(update={"buffers": stored, "constants": constants})
        model = first if whole == spec else _load(program, _config(search, whole), weights)
        if _experts_refuse(program, model):
            model = _load(program, _config(search, whole.model_copy(update={"experts": "eager"})), weights)
        yield model


def _experts_refuse(program: Program, model: Any) -> bool:
    """Does the kernel that multiplies all experts at once refuse their sizes?"""
    one_kernel = model.config._experts_implementation not in (None, "eager")
    return one_kernel and not program.is_meta and _why_not(program, model).startswith("does not run")


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


def _load(program: Program, config: Any, weights: Mapping[str, Tensor]) -> Any:
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if program.is_meta:
        with torch.device("meta"):
            return kind(config).eval()
    with torch.device("meta"):
        stored = set(kind(config).state_dict())
    given = {n: t for n, t in weights.items() if n in stored}
    model, notes = kind.from_pretrained(
        None, config=config, state_dict=given, dtype=_dtype(program), output_loading_info=True
    )
    if notes["missing_keys"]:
        raise NotExpressible(f"{min(notes['missing_keys'])} of {kind.__name__} is not in the result")
    model.generation_config = _generation_config(program) or model.generation_config
    return model.eval()


def _buffers(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Tensors that the class makes of sizes, where the program has others."""
    stored = set(model.state_dict())
    out = {}
    for name, now in model.named_buffers():
        ours = weights.get(name)
        if ours is None or name in stored:
            continue
        same = ours.shape == now.shape and (now.is_meta or torch.allclose(ours.float(), now.float(), rtol=0, atol=0))
        if not same:
            out[name] = Stored(shape=tuple(ours.shape), dtype=str(ours.dtype).removeprefix("torch."))  # type: ignore[arg-type]
    return out


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
