"""A ``model_type`` of ours: ``"fxcompress"``, whose configs are those of another type plus what differs from it.

AutoConfig.from_pretrained(dir)     an instance of a subclass of the base's config, so that everything which reads
                                    configs (generate, caches, masks) sees an ordinary one

The subclass and the model class that goes with it are made when the first such config is read; registering the type
imports no modeling file. Fields of the whole model that the base's own checks would refuse are set past them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from fxcompress.errors import CompressError
from fxcompress.export.own.spec import Spec

MODEL_TYPE = "fxcompress"


class FxcompressConfig(PreTrainedConfig):
    """What the type is registered with: reading a config of it gives one of the base's, with our field."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = dict(config_dict)
        spec = Spec.read(values.get("fxcompress"))
        return config_class(spec.base).from_dict(values, **kwargs)


def register() -> None:
    """Let AutoConfig know the type. Cheap, and harmless when repeated."""
    AutoConfig.register(MODEL_TYPE, FxcompressConfig, exist_ok=True)


class OwnConfig:
    """Mixed into the config class of a base."""

    fxcompress: dict[str, Any]

    def __post_init__(self, **kwargs: Any) -> None:
        spec = Spec.read(kwargs.pop("fxcompress", None) or {"base": type(self)._base_type})  # type: ignore[attr-defined]
        kwargs.pop("model_type", None)  # the class's, for every config of it
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.__dict__["fxcompress"] = spec.to_json()
        whole = spec.configs.get("", {})
        self.__dict__["_stock_values"] = {name: getattr(self, name, None) for name in whole}
        set_fields(self, whole, "the model")
        if spec.experts and self._experts_implementation is None:  # type: ignore[has-type]
            self._experts_implementation = spec.experts

    def validate(self) -> None:
        """The base's checks, where they can hold: sizes of the whole model that it cannot say were set past them."""
        if not self.__dict__.get("_stock_values"):
            super().validate()  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """As it is read again: fields that were set past the base's checks as the base takes them."""
        values = super().to_dict()  # type: ignore[misc]
        values.update(values.pop("_stock_values", {}))
        return values

    @property
    def spec(self) -> Spec:
        return Spec.read(self.fxcompress)


def set_fields(config: Any, fields: Mapping[str, Any], where: str) -> None:
    """Set numbers past the config's checks. Raises CompressError for a name that is no number of the config's."""
    for name, value in fields.items():
        name = type(config).attribute_map.get(name, name)
        now = config.__dict__.get(name)
        if type(now) not in (int, float):
            raise CompressError(f"{name!r} of {where} is no number that {type(config).__name__} has")
        config.__dict__[name] = value


@functools.cache
def config_class(base: str) -> Any:
    """The config class for a base's model_type, its model class registered with AutoModelForCausalLM."""
    if base == MODEL_TYPE or base not in CONFIG_MAPPING:
        raise CompressError(f"the config's base {base!r} is no model_type that this version of transformers knows")
    stock: Any = CONFIG_MAPPING[base]
    if stock not in MODEL_FOR_CAUSAL_LM_MAPPING or stock.sub_configs:
        raise CompressError(
            f"transformers has no causal language model of model_type {base!r} with a config of one piece"
        )
    from fxcompress.export.own.model import model_class  # the modeling code of the base is needed from here on

    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[stock]
    members = {"model_type": MODEL_TYPE, "_base_type": base, "__module__": __name__}
    own: Any = type(f"Compressed{stock.__name__}", (OwnConfig, stock), members)
    AutoModelForCausalLM.register(own, model_class(model, own), exist_ok=True)
    return own
