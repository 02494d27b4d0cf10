"""Ways out of a program: an ordinary model of transformers, and the one saved form that every result has."""

from fxcompress.export.config import NotExpressible
from fxcompress.export.files import prepare_output
from fxcompress.export.form import to_transformers

__all__ = ["NotExpressible", "prepare_output", "to_transformers"]
