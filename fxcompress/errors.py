"""Errors that speak of the user's model: what, where, which sizes, and what to do."""


class CompressError(ValueError):
    """The request cannot be carried out on this model. Raised before anything was changed or written."""


class CaptureError(CompressError):
    """The model could not be traced into a graph."""


class ProofError(RuntimeError):
    """A law does not hold between the original and the rewritten model: a fault of fxcompress, never of the user."""
