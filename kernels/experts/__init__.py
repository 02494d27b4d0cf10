from fxcompress.kernels.experts.op import experts

__all__ = ["experts"]
