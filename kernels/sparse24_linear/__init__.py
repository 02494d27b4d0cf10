from fxcompress.kernels.sparse24_linear.op import sparse24_linear

__all__ = ["sparse24_linear"]
