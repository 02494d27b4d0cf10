"""From a program back to checkpoints: the config of the result, saving, loading."""

from fxcompress.export.config import NotExpressible
from fxcompress.export.files import output_directory, prepare_output
from fxcompress.export.transformers import to_transformers

__all__ = ["NotExpressible", "output_directory", "prepare_output", "to_transformers"]
