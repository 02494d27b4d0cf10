from fxcompress.kernels.gated_delta.op import gated_delta

__all__ = ["gated_delta"]
