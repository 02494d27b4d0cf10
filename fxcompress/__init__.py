"""fxcompress: a compiler for compressing language models.

small = fxcompress.apply(model, passes=[passes.PruneFFN(ratio=0.25)])
small.report                  what changed and what proves it
small.save_pretrained(path)   loads with transformers whenever the family's config can say the result
"""

from fxcompress import passes
from fxcompress.capture import capture
from fxcompress.compressed import CompressedModel, apply, load
from fxcompress.distillation import Objective, Training, correct_teacher, distill
from fxcompress.errors import CaptureError, CompressError, ProofError
from fxcompress.export import NotExpressible
from fxcompress.export.own import register as _register
from fxcompress.program import Program
from fxcompress.run import compress
from fxcompress.searching import search
from fxcompress.searching.minipuzzle import minipuzzle
from fxcompress.searching.puzzle import puzzle
from fxcompress.weights.pattern import NM

_register()  # AutoConfig knows our model_type

__version__ = "0.1.0"

__all__ = [
    "NM",
    "CaptureError",
    "CompressError",
    "CompressedModel",
    "NotExpressible",
    "Objective",
    "Program",
    "ProofError",
    "Training",
    "apply",
    "capture",
    "compress",
    "correct_teacher",
    "distill",
    "load",
    "minipuzzle",
    "passes",
    "puzzle",
    "search",
]
