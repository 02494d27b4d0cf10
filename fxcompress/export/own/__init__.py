"""Results that no config of transformers describes, as models that transformers loads: a model_type of ours."""

from fxcompress.export.own.config import MODEL_TYPE, register
from fxcompress.export.own.give import own_form, to_own

__all__ = ["MODEL_TYPE", "own_form", "register", "to_own"]
