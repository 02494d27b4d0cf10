"""From a program back to checkpoints: the config of the result, saving, loading."""

from fxcompress.export.config import NotExpressible, find_configs
from fxcompress.export.files import output_directory, prepare_output
from fxcompress.export.load import load
from fxcompress.export.save import save
from fxcompress.export.transformers import to_transformers

__all__ = ["NotExpressible", "find_configs", "load", "output_directory", "prepare_output", "save", "to_transformers"]
